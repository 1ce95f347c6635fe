"""The checks of the CPU pass here, and each of them can fail."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mergecore.diagnostics import cpu_arithmetic
from mergecore.diagnostics.cpu_arithmetic import Finding, check_cpu


def test_all_is_well_here() -> None:
    assert all(finding.passed for finding in check_cpu())
    assert len(check_cpu()) == 4


def test_flushed_subnormals_are_found() -> None:
    """In a process of its own, as the switch is the process's."""
    code = (
        "import torch; from mergecore.diagnostics.cpu_arithmetic import check_cpu\n"
        "assert torch.set_flush_denormal(True); print(check_cpu()[0].problem)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "AssertionError" in done.stderr:
        pytest.skip("this CPU can't flush subnormals")
    assert done.stdout == "they are flushed to zero in this process\n"


def test_fused_products_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.mul

    def unrounded(a: torch.Tensor, b: Any, *, out: torch.Tensor | None = None) -> torch.Tensor:
        return exact(a.double(), b)

    monkeypatch.setattr(torch, "mul", unrounded)
    assert Finding("products are rounded before they are added", "multiply and add are fused") in check_cpu()


def test_inexact_quotients_and_casts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__truediv__", lambda a, b: a * b.reciprocal())
    monkeypatch.setattr(torch, "bfloat16", torch.float16)
    problems = {finding.problem for finding in cpu_arithmetic.check_cpu()}
    assert problems == {"", "a quotient is off by a bit", "a cast rounds otherwise"}
