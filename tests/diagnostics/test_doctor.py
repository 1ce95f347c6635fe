"""The doctor's report, where there is a GPU and where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergecore import RunError
from mergecore.diagnostics import batch_check, doctor
from mergecore.diagnostics.batch_check import check_batches
from mergecore.diagnostics.cpu_arithmetic import Finding
from mergecore.diagnostics.doctor import examine
from mergecore.diagnostics.kernel_check import check_kernels
from mergecore.diagnostics.merge_check import MergeCheck
from mergecore_kernels.cases import OPERATIONS, SIZES, Case

CPU = torch.device("cpu")
CASE = Case(OPERATIONS["ties"], "bf16", 2, SIZES["small"])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU is the CPU, and on which one case is planned."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "planned_cases", lambda: iter([(CASE, True)]))
    monkeypatch.setattr(doctor, "check_kernels", lambda kernels, _, *rest: check_kernels(kernels, CPU, *rest))
    monkeypatch.setattr(doctor, "check_batches", lambda kernels, _: check_batches(kernels, CPU))
    monkeypatch.setattr(doctor, "check_merges", lambda device: [MergeCheck("ties", f"{device}:0", "")])
    monkeypatch.setattr(batch_check, "LENGTHS", (17, 5))


def test_without_a_gpu_it_says_what_is_skipped() -> None:
    report = examine("cpu")
    assert report.passed
    assert report.kernels == ()
    assert report.skipped == (
        "the kernels: torch sees no GPU. The test suite checks them on the CPU, in triton's interpreter",
        "merges on a GPU: there is none. The test suite does them on a stand-in for one",
    )


def test_a_failed_check_of_the_cpu_fails_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_cpu", lambda: (Finding("rounding", "it is off"),))
    assert not examine("cpu").passed


def test_with_a_gpu(gpu: None, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_kernels", lambda: kernels)
    told: list[str] = []
    report = examine(tell=told.append)
    assert report.device == "cuda"
    assert report.passed
    assert {check.size for check in report.kernels} == {"small", "batch"}
    assert report.merges == (MergeCheck("ties", "cuda:0", ""),)
    assert told == ["Checking ties bf16 M=2 small", "Checking batches of small tensors", "Checking whole merges"]


def test_with_a_gpu_and_broken_kernels(gpu: None, broken_kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_kernels", lambda: broken_kernels)
    assert not examine().passed


def test_with_a_gpu_that_merges_wrongly(gpu: None, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_kernels", lambda: kernels)
    monkeypatch.setattr(doctor, "check_merges", lambda device: [MergeCheck("ties", "cuda:0", "2 bytes differ")])
    assert not examine().passed


def test_with_a_gpu_but_no_triton(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_kernels", lambda: None)
    report = examine()
    assert report.passed
    assert [check.size for check in report.kernels] == ["small"]
    assert report.skipped == ("the kernels: triton is not installed. The GPU runs the operations in torch",)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RunError, match="--device: `teapot` can't be used: .*hint: leave it out, or write cpu"):
        examine("teapot")
