"""Reads past the host's memory: whole merges with a reader of a stand-in, and kvikio's calls with a stand-in for it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_family import example_config, load_weights, same_bytes, write_family
from stand_in_device import StandIn
from torch import Tensor

from mergecore import CheckpointError, api, merge
from mergecore.stream.device_sizes import DeviceSizes
from mergecore.stream.devices import Devices
from mergecore.stream.direct_reader import KvikioFiles, open_direct_reader, reads_directly
from mergecore_kernels.operations import CHUNK


class Direct:
    """Reads late, and bytes in between are wrong."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self._delays = random.Random(1)

    def read(self, path: str, offset_bytes: int, into: Tensor) -> None:
        into.fill_(0xAA)
        time.sleep(self._delays.uniform(0, 0.001))
        with Path(path).open("rb") as file:
            file.seek(offset_bytes)
            into.copy_(torch.frombuffer(bytearray(file.read(len(into))), dtype=torch.uint8))
        self.read_bytes += len(into)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, llama) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"), llama(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear"])
def test_whole_merges(method: str, family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = example_config(method, family)
    merge(config, tmp_path / "cpu", workers=0, seed=3)
    want = load_weights(tmp_path / "cpu")
    device = StandIn(delay_s=0.002)
    device.direct = Direct()

    def sizes(memory: int, jobs: Any) -> DeviceSizes:
        return DeviceSizes(frame_bytes=1_400_000, step=2 * CHUNK, scratch_bytes=1 << 20)

    monkeypatch.setattr(
        api, "_start_devices", lambda names, memory_bytes, readers: Devices([device], readers=2, choose_sizes=sizes)
    )
    try:
        result = merge(config, tmp_path / "out", device="cuda", backend="torch", seed=3, memory="16MiB")
    finally:
        device.close()
    assert same_bytes(want, load_weights(tmp_path / "out"))
    assert device.direct.read_bytes == result.report.read_bytes


class CuFile:
    """kvikio's, of the host's memory."""

    opened: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []

    def __init__(self, path: str) -> None:
        self._path = path
        self.opened.append(path)

    def read(self, buffer: Tensor, size: int, file_offset: int) -> int:
        data = Path(self._path).read_bytes()[file_offset : file_offset + size]
        buffer[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
        return len(data)

    def close(self) -> None:
        self.closed.append(self._path)


@pytest.fixture(scope="module")
def kvikio() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "kvikio", SimpleNamespace(CuFile=CuFile, __spec__=object()))
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        yield


@settings(max_examples=30, deadline=None)
@given(reads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90), st.integers(1, 10)), max_size=12))
def test_any_reads(kvikio, tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int, int]]) -> None:
    folder = tmp_path_factory.mktemp("files")
    for i in range(4):
        (folder / str(i)).write_bytes(bytes(range(i, i + 100)))
    CuFile.opened.clear()
    CuFile.closed.clear()
    files = KvikioFiles(torch.device("cuda:0"), most_open=2)
    for i, at, n in reads:
        into = torch.zeros(n, dtype=torch.uint8)
        files.read(str(folder / str(i)), at, into)
        assert into.tolist() == list(range(i + at, i + at + n))
        assert len(CuFile.opened) - len(CuFile.closed) <= 2
    files.close()
    assert sorted(CuFile.opened) == sorted(CuFile.closed)


def test_a_file_that_ends_too_soon(kvikio, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    files = KvikioFiles(torch.device("cuda:0"), most_open=2)
    with pytest.raises(CheckpointError, match="short: became shorter while it was read"):
        files.read(str(tmp_path / "short"), 1, torch.zeros(3, dtype=torch.uint8))


def test_what_kvikio_cannot_read(kvikio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: str) -> None:
        raise RuntimeError("KvikIO failure at: file.cpp:21: no permission\nmore")

    monkeypatch.setattr(sys.modules["kvikio"], "CuFile", fail)
    with pytest.raises(CheckpointError) as error:
        KvikioFiles(torch.device("cuda:0"), most_open=2).read("x", 0, torch.zeros(3, dtype=torch.uint8))
    assert str(error.value) == (
        "x: can't be read by kvikio: KvikIO failure at: file.cpp:21: no permission "
        "(hint: uninstall kvikio to read it by way of the host's memory)"
    )


def test_where_it_is_used(kvikio, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert reads_directly(cuda)
    assert isinstance(open_direct_reader(cuda, 2), KvikioFiles)
    assert open_direct_reader(cpu, 2) is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not reads_directly(cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delitem(sys.modules, "kvikio")
    assert not reads_directly(cuda)
