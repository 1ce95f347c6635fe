"""Timing, on the CPU and with a stand-in for a GPU's events; and the memory that is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergecore_kernels.cases import copy_seconds, free_bytes, median_seconds, memory, timing


def test_median_of_the_runs_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(timing, "perf_counter", lambda: next(times))
    runs: list[int] = []
    assert median_seconds(lambda: runs.append(1), torch.device("cpu"), rounds=3) == 3.0
    assert len(runs) == 4


def test_a_copy_takes_time() -> None:
    assert 0 < copy_seconds(torch.ones(1 << 20), rounds=3) < 10


def test_a_gpu_is_timed_between_events_after_its_cache_was_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 2.0

    class Flush:
        def zero_(self) -> None:
            log.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())
    # milliseconds of the events -> seconds
    assert median_seconds(lambda: log.append("run"), torch.device("cuda"), rounds=2) == 0.002
    assert log == ["run", *["flush", "record", "run", "record", "synchronize"] * 2]


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: let_go.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 10))
    assert free_bytes(torch.device("cuda")) == 5
    assert let_go


def test_free_memory_of_the_host() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50


def test_a_container_has_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(torch.device("cpu")) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 700


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_host_limits", lambda: iter(()))
    assert free_bytes(torch.device("cpu")) == 8 << 30
