"""The doctor's merges, on a stand-in for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from stand_in_device import StandIn

from mergecore import api, methods
from mergecore.diagnostics import merge_check
from mergecore.diagnostics.merge_check import MergeCheck, check_merges
from mergecore.stream import device_merger
from mergecore.stream.devices import Devices
from mergecore_kernels import torch_ops


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two merge methods, and one GPU."""
    device = StandIn()

    def start(names: str, memory_bytes: int | None, readers: int | None) -> Devices:
        assert names == "cuda:0"
        return Devices([device], device_memory_bytes=memory_bytes, readers=readers)

    monkeypatch.setattr(api, "_start_devices", start)
    monkeypatch.setattr(device_merger, "import_module", lambda name: torch_ops)
    monkeypatch.setattr(merge_check, "_names", lambda device: ["cuda:0"])
    monkeypatch.setattr(methods, "names", lambda: ["linear", "arcee_fusion"])
    yield
    device.close()


def test_a_device_that_is_right() -> None:
    assert list(check_merges("cuda")) == [MergeCheck(name, "cuda:0", "") for name in ("linear", "arcee_fusion")]


def test_a_device_that_is_wrong_in_one_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_ops.combine_batch

    def combine_batch(jobs: Any, workspace: Any) -> None:
        right(jobs, workspace)
        for _, tile, out in jobs:
            if len(tile) == 7:
                out[:1] = -out[:1]

    monkeypatch.setattr(torch_ops, "combine_batch", combine_batch)
    assert [check.problem for check in check_merges("cuda")] == ["1 bytes differ from the CPU's"] * 2


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jobs: Any, workspace: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(torch_ops, "combine_batch", fail)
    assert [check.problem for check in check_merges("cuda")] == ["RuntimeError: no kernel image"] * 2


def test_little_memory_sends_a_tensor_through_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = []
    whole = device_merger.DeviceMerger._merge_in_tiles

    def merge_in_tiles(self: Any, job: Any) -> None:
        streamed.append(job.tensor.name)
        whole(self, job)

    monkeypatch.setattr(device_merger.DeviceMerger, "_merge_in_tiles", merge_in_tiles)
    assert all(check.passed for check in check_merges("cuda"))
    assert set(streamed) == {"large"}
