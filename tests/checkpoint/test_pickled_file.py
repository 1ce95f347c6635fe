"""Files that torch.save wrote: every type and layout is found, and no pickle does anything."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pickle
import re
import struct
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergecore.checkpoint import pickled_file
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.pickled_file import read_pickled
from mergecore.errors import CheckpointError
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def loaded(path: Path) -> dict[str, Tensor]:
    """All tensors, by the references that we found."""
    found = {}
    with Files() as files:
        for name, ref in read_pickled(path).items():
            raw = torch.empty(ref.n_bytes, dtype=torch.uint8)
            half = ref.n // 2
            files.read_elements(ref, 0, raw_bytes(raw[: half * ref.dtype.size]))
            files.read_elements(ref, half, raw_bytes(raw[half * ref.dtype.size :]))
            found[name] = raw.view(torch_dtype(ref.dtype)).view(ref.shape)
    return found


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype is wanted[name].dtype
        and found[name].shape == wanted[name].shape
        and torch.equal(found[name].view(-1).view(torch.uint8), wanted[name].contiguous().view(-1).view(torch.uint8))
        for name in wanted
    )


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_and_layouts(tmp_path: Path, dtype: torch.dtype, new_format: bool) -> None:
    block = torch.arange(60).to(dtype)
    tensors = {
        "whole": block,
        "tied": block,
        "part": block[7:31].view(4, 6),
        "transposed": block.view(6, 10).T,
        "steps": block.view(3, 4, 5)[:, ::2, 1:4],
        "expanded": block[3:4].expand(5),
        "number": block[5],
        "row": block.view(1, 60),
        "none": torch.empty((0, 3), dtype=dtype),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
    assert same(loaded(path), tensors)
    refs = read_pickled(path)
    assert [name for name, ref in refs.items() if ref.strides is not None] == ["transposed", "steps", "expanded"]
    assert refs["whole"].offset_bytes == refs["tied"].offset_bytes


def test_a_module(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    assert isinstance(state, collections.OrderedDict)  # with attributes of its own, which are pickled too
    torch.save(state, tmp_path / "m.bin")
    assert same(loaded(tmp_path / "m.bin"), state)


def test_parameters(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    torch.save({"p": parameter}, tmp_path / "m.bin")
    assert same(loaded(tmp_path / "m.bin"), {"p": parameter.detach()})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols(tmp_path: Path, protocol: int) -> None:
    tensors = {"x" * 300: torch.ones(3), "y": torch.ones(2, dtype=torch.uint16)}
    torch.save(tensors, tmp_path / "m.bin", pickle_protocol=protocol)
    assert same(loaded(tmp_path / "m.bin"), tensors)


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_training_checkpoint(tmp_path: Path, key: str, new_format: bool) -> None:
    content = {
        "epoch": 3,
        key: {"w": torch.ones(3), "version": 2},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "m": torch.ones(9, dtype=torch.float64)}}, "lr": 1e-3},
        "history": [(1, 2.0, None), [True, False]],
        "size": torch.Size([3, 4]),
        "loss": np.float64(1.5),
    }
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=new_format)
    assert same(loaded(tmp_path / "last.ckpt"), {"w": torch.ones(3)})


def test_the_archive_may_have_been_renamed(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "model-1.bin")
    (tmp_path / "model-1.bin").rename(tmp_path / "pytorch_model.bin")
    assert same(loaded(tmp_path / "pytorch_model.bin"), {"x": torch.ones(3)})


def fails(path: Path, *messages: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    for message in (str(path), *messages):
        assert message in str(caught.value)


class Calls:
    """Pickles as a call of `function`, as objects of any class may."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (lambda trace: Calls(os.system, f"touch {trace}"), "posix.system"),
        (lambda trace: Calls(eval, f"open({trace!r}, 'w')"), "builtins.eval"),
        (lambda trace: Calls(open, trace, "w"), "io.open"),
        (lambda trace: Calls(getattr, Calls(__import__, "os"), "system"), "builtins.getattr"),
        (lambda trace: [{"deep": (Calls(os.mkdir, trace),)}], "posix.mkdir"),
        (lambda trace: Calls(collections.OrderedDict, Calls(os.mkdir, trace)), "posix.mkdir"),
        (lambda trace: argparse.Namespace(epoch=3), "argparse.Namespace"),
        (lambda trace: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_nothing_is_run(tmp_path: Path, evil: Any, name: str, new_format: bool) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "m.bin"
    torch.save(
        {"x": torch.ones(3), "y": evil(str(trace))}, path, pickle_protocol=2, _use_new_zipfile_serialization=new_format
    )
    fails(path, f"asks for `{name.replace('builtins', '__builtin__')}`, which is not allowed" if name else "")
    assert not trace.exists()


def archive(path: Path, pickled: bytes, entries: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A zip file like those of torch, with a pickle of our own."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("any/data.pkl", pickled)
        for name, content in (entries or {}).items():
            file.writestr(f"any/{name}", content)
    return path


T = b"ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor_pickle(place: bytes) -> bytes:
    """{"w": a tensor in a storage of 4 floats}; `place` is its offset, shape and strides."""
    return b"\x80\x02}X\x01\x00\x00\x00w" + T + STORAGE + place + b"\x89}tRs."


def test_our_own_archive(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "m.bin", tensor_pickle(b"K\x01K\x03\x85K\x01\x85"), {"data/0": struct.pack("4f", 1, 2, 3, 4)}
    )
    assert same(loaded(path), {"w": torch.tensor([2.0, 3.0, 4.0])})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (b"K\x02K\x03\x85K\x01\x85", "`w` reaches beyond the 16 bytes of its storage"),
        (b"K\x00K\x02K\x02\x86K\x03K\x01\x86", "`w` reaches beyond the 16 bytes of its storage"),
        (b"K\x00K\x03\x85K\x01K\x01\x86", "`w` has a shape, offset or stride that is no natural number"),
        (b"K\x00J\xff\xff\xff\xff\x85K\x01\x85", "`w` has a shape, offset or stride that is no natural number"),
        (b"K\x00]K\x01\x85", "`w` has a shape, offset or stride that is no natural number"),
        (b"K\x00(" + b"K\x01" * 65 + b"t(" + b"K\x01" * 65 + b"t", "shape, offset or stride that is no natural number"),
    ],
)
def test_places_outside_of_the_storage(tmp_path: Path, place: bytes, message: str) -> None:
    fails(archive(tmp_path / "m.bin", tensor_pickle(place), {"data/0": bytes(16)}), message)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02}.", "holds no tensors by name, only other data"),
        (b"\x80\x02]K\x01a.", "holds no tensors by name, only other data"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "holds no tensors by name, only `a`"),
        (b"\x80\x02}(K\x01K\x02\x86K\x03u.", "holds a dictionary with a key that is neither text nor a number: tuple"),
        (b"\x80\x02(i__main__\nx\n.", "holds the pickle instruction INST, which no file of weights needs"),
        (b"\x80\x02ctorch\nSize\n)R.", "calls `torch.Size` in a way that no file of weights needs"),
        (b"\x80\x02K\x01K\x02R.", "is not a file that `torch.save` wrote, or it is broken"),
        (b"\x80\x02", "is not a file that `torch.save` wrote, or it is broken"),
        (b"\x80\x02cos\n\x1b[31m\n.", r"asks for `os.\x1b[31m`, which is not allowed"),
        (b"\x80\x02}K\x01K\x02s.", "holds no tensors by name, only `1`"),
        (b"\x80\x02" + STORAGE.replace(b"K\x04t", b"K\x04K\x05t") + b".", "holds views of storages"),
    ],
)
def test_other_pickles(tmp_path: Path, pickled: bytes, message: str) -> None:
    fails(archive(tmp_path / "m.bin", pickled), message)


def test_unsupported_types(tmp_path: Path) -> None:
    for new_format, message in [
        (True, "`z` has elements of torch.ComplexFloatStorage"),
        (False, "holds a torch.Complex"),
    ]:
        torch.save(
            {"z": torch.ones(2, dtype=torch.complex64)}, tmp_path / "m.bin", _use_new_zipfile_serialization=new_format
        )
        fails(tmp_path / "m.bin", message, "which is not supported")


@pytest.mark.parametrize(
    ("pickled", "what"),
    [
        (b"\x80\x02" + b"r\xff\xff\xff\xff" * 2 + b".", "memo of 2^32 places"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "byte array of 2^63 bytes"),
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"}h\x00K\x01s.", "key whose hash takes 2^60 steps"),
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"h\x00h\x00\x93.", "name whose text takes 2^60 steps"),
        (b"\x80\x02" + b"(" * 200_000 + b".", "many marks"),
        (b"\x80\x02" + b"]" + b"]a" * 100_000 + b".", "lists in lists"),
    ],
)
def test_bombs_are_harmless(tmp_path: Path, pickled: bytes, what: str) -> None:
    path = archive(tmp_path / "m.bin", pickled)
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        read_pickled(path)
    assert time.monotonic() - began < 60, what  # a bomb that goes off takes for ever, however fast the machine is


def test_a_description_too_long(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pickled_file, "MOST_PICKLE_BYTES", 100)
    torch.save({f"layer {i}": torch.ones(1) for i in range(10)}, tmp_path / "m.bin")
    fails(tmp_path / "m.bin", "its description of the tensors takes more than 100 bytes")


def test_compressed_entries(tmp_path: Path) -> None:
    fails(
        archive(tmp_path / "m.bin", tensor_pickle(b"K\x01K\x03\x85K\x01\x85"), compression=zipfile.ZIP_DEFLATED),
        "its entry `any/data.pkl` is compressed or encrypted, so it can't be read in parts",
    )


def test_missing_storage(tmp_path: Path) -> None:
    fails(archive(tmp_path / "m.bin", tensor_pickle(b"K\x01K\x03\x85K\x01\x85")), "the bytes of `w` are not in it")


def test_another_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
        file.writestr("readme", "")
    fails(tmp_path / "m.bin", "is a zip archive without a `data.pkl`")


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "m.bin", tensor_pickle(b"K\x01K\x03\x85K\x01\x85"), {"data/0": bytes(16), "byteorder": b"big"}
    )
    fails(path, "was written on a machine with the other byte order")
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    changed, count = re.subn(rb"(little_endianq.)\x88", rb"\g<1>" + bytes([0x89]), path.read_bytes())
    assert count == 1
    path.write_bytes(changed)
    fails(path, "was written on a machine with the other byte order")


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_truncated_files(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "m.bin"
    torch.save({"x": torch.ones(1000)}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:-100])
    fails(path, "not a whole torch file: it", "copy or download it again")


def test_no_torch_file(tmp_path: Path) -> None:
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps(5), b"\x00" * 1000):
        (tmp_path / "m.bin").write_bytes(content)
        fails(tmp_path / "m.bin", "is not a file that `torch.save` wrote, or it is broken")
    fails(tmp_path / "nothing.bin", "can't be read: No such file")


WHOLE = {}
with tempfile.TemporaryDirectory() as folder:
    for new_format in (True, False):
        torch.save(
            {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(3, dtype=torch.bfloat16)},
            Path(folder) / "m.bin",
            _use_new_zipfile_serialization=new_format,
        )
        WHOLE[new_format] = (Path(folder) / "m.bin").read_bytes()
changes = st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")  # it tells of odd escapes in names
@given(st.booleans(), changes, st.integers(0, 3000))
@settings(max_examples=300, deadline=10_000)
def test_changed_bytes_end_in_tensors_or_a_message(
    new_format: bool, changes: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(WHOLE[new_format])
    for at, new in changes:
        content[at % len(content) : at % len(content) + len(new)] = new
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.bin"
        path.write_bytes(content[: max(len(content) - cut // 10, 0)])
        with contextlib.suppress(CheckpointError):
            for ref in read_pickled(path).values():
                assert ref.dtype in Dtype
                assert ref.offset_bytes <= len(content) or not ref.n
