"""The checks of kernels, with the CPU standing in for a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from mergecore.diagnostics import batch_check, kernel_check
from mergecore.diagnostics.batch_check import check_batches
from mergecore.diagnostics.kernel_check import KernelCheck, anonymous, check_kernels, planned_cases
from mergecore_kernels.cases import DTYPES, OPERATIONS, SIZES, Case, data
from mergecore_kernels.operations import CHUNK

CPU = torch.device("cpu")


def checks_of(kernels: Any, *names: str, timed: bool = False, odd: bool = False) -> dict[str, KernelCheck]:
    cases = (
        (Case(OPERATIONS[name], "bf16", 1 if OPERATIONS[name].single else 2, SIZES["small"], odd), timed)
        for name in names or OPERATIONS
    )
    checks, skipped = check_kernels(kernels, CPU, cases)
    assert not skipped
    return {check.operation: check for check in checks}


@pytest.mark.parametrize("odd", [False, True], ids=["aligned", "odd"])
def test_right_kernels_pass(kernels: Any, odd: bool) -> None:
    checks = checks_of(kernels, odd=odd)
    assert set(checks) == set(OPERATIONS)
    assert all(check.passed and check.odd == odd for check in checks.values())
    assert checks["ties"].bytes_per_s is checks["ties"].share_of_copy is None


def test_timed_checks_give_a_share_of_a_copy(kernels: Any) -> None:
    check = checks_of(kernels, "ties", timed=True)["ties"]
    assert check.bytes_per_s is not None
    assert check.share_of_copy is not None
    assert check.bytes_per_s > 0
    assert 0 < check.share_of_copy < 2


def test_without_triton_the_twin_alone_is_checked() -> None:
    assert checks_of(None, "gram", timed=True)["gram"].bytes_per_s is not None


def test_without_triton_large_tensors_are_not_looked_at() -> None:
    case = Case(OPERATIONS["ties"], "bf16", 2, SIZES["embedding"])
    assert check_kernels(None, CPU, iter([(case, True)])) == ((), ())


def test_broken_kernels_are_found_and_the_others_still_checked(broken_kernels: Any) -> None:
    checks = checks_of(broken_kernels, "copy", "gram", "nonfinite")
    assert checks["copy"].problems == (
        "triton on the GPU, from element 0 on: 1 of 204805 elements differ: element 204804 is 1.5 "
        f"(0x1.8000000000000p+0) instead of {checks['copy'].problems[0].partition('instead of ')[2]}",
    )
    assert checks["gram"].problems == ("RuntimeError: no kernel image in ties.cubin",)
    assert checks["nonfinite"].passed


def test_a_broken_twin_on_the_device_is_found(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where torch's own operations differ, the report says which of both it was."""

    class Twin:
        calls = 0

        def count_nonfinite(self, x: torch.Tensor) -> int:
            Twin.calls += 1
            return 0 if Twin.calls == 1 else 7

    monkeypatch.setattr(kernel_check, "torch_ops", Twin())
    case = Case(OPERATIONS["nonfinite"], "bf16", 1, SIZES["small"])
    ((check,), _) = check_kernels(kernels, CPU, iter([(case, False)]))
    assert check.problems == ("torch on the GPU, from element 0 on: number 0 is 7 instead of 0",)


def test_the_largest_tensors_are_compared_in_parts(
    kernels: Any, broken_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_check, "WHOLE", 1000)
    monkeypatch.setattr(kernel_check, "BOUNDARY", 2 * CHUNK)
    monkeypatch.setattr(kernel_check, "PIECE", 2 * CHUNK)
    assert checks_of(kernels, "ties")["ties"].passed
    monkeypatch.setattr(data, "TILE", CHUNK)
    problems = checks_of(broken_kernels, "ties")["ties"].problems
    assert [problem.partition(":")[0] for problem in problems] == [
        f"triton on the GPU, from element {start} on" for start in (0, CHUNK, 3 * CHUNK)
    ]


def test_what_does_not_fit_is_left_out(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "free_bytes", lambda device: 10)
    case = Case(OPERATIONS["ties"], "bf16", 2, SIZES["embedding"])
    checks, skipped = check_kernels(kernels, CPU, iter([(case, True)]))
    assert checks == ()
    assert skipped == ("ties bf16 M=2 embedding: 5.3 GB don't fit the free memory of the GPU and the host",)


def test_the_plan_covers_every_operation_dtype_and_kind_of_tensor() -> None:
    cases = [case for case, _ in planned_cases()]
    assert {(case.operation.name, case.dtype) for case in cases} == {(n, d) for n in OPERATIONS for d in DTYPES}
    assert {(case.operation.name, case.dtype) for case in cases if case.odd} == {
        (n, d) for n in OPERATIONS for d in DTYPES
    }
    assert {case.models for case in cases} == {1, 2, 3, 8, 16}
    assert {case.size.name for case in cases} == set(SIZES) - {"small", "experts"}
    assert Counter(cases).most_common(1)[0][1] == 1
    assert all(case.operation.writes for case in cases if case.size.n > 2**31)


def test_progress_is_told(kernels: Any) -> None:
    told: list[str] = []
    case = Case(OPERATIONS["ties"], "bf16", 2, SIZES["small"])
    check_kernels(kernels, CPU, iter([(case, False)]), told.append)
    assert told == ["Checking ties bf16 M=2 small"]


def test_batches(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_check, "LENGTHS", (17, 5, CHUNK + 1))
    checks = list(check_batches(kernels, CPU))
    assert {check.operation for check in checks} == set(OPERATIONS)
    assert all(check.passed and check.size == "batch" for check in checks)


def test_broken_batches_are_found(broken_kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_check, "LENGTHS", (17, 5))
    checks = {check.operation: check for check in check_batches(broken_kernels, CPU)}
    first, second = checks["dare_ties"].problems
    assert first.startswith("triton on the GPU, the tensor of 17 elements: 1 of 17 elements differ: element 16 is 1.5")
    assert second.startswith("triton on the GPU, the tensor of 5 elements")
    assert checks["gram"].problems == ("RuntimeError: no kernel image in ties.cubin",)


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("OSError: /home/me/x/ties.py:14: failed\nmore", "OSError: ties.py:14: failed"),
        (r"C:\Users\me\cache\ties.cubin is bad", "ties.cubin is bad"),
        ("'~/.triton/cache/a.so': no such file", "'~a.so': no such file"),
        ("1/2 of 3 GB/s and a/b", "1/2 of 3 GB/s and a/b"),
        ("", ""),
    ],
)
def test_messages_lose_their_folders(message: str, want: str) -> None:
    assert anonymous(message) == want
