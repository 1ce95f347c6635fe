"""`mergecore doctor`: its table, its JSON, its exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mergecore.diagnostics import doctor
from mergecore.diagnostics.cpu_arithmetic import Finding
from mergecore.diagnostics.doctor import DoctorReport, examine
from mergecore.diagnostics.environment import Gpu
from mergecore.diagnostics.kernel_check import KernelCheck
from mergecore.diagnostics.merge_check import MergeCheck
from mergecore_cli.main import app

RIGHT = KernelCheck("ties", "bf16", 3, "embedding", False, (), 2.5e12, 0.84)
WRONG = KernelCheck("gram", "fp32", 2, "q_proj", True, ("triton on the GPU: number 0 is 1 instead of 2",), None, None)

MERGES = (MergeCheck("ties", "cuda:0", ""), MergeCheck("ties", "cuda:1", ""))


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> DoctorReport:
    """The next one that `mergecore doctor` will print: of a machine with a GPU."""
    here = examine("cpu")
    there = replace(here.environment, cuda="12.8", driver="nvidia 570.1", gpus=(Gpu("A card", "9.0", 80 * 10**9, 132),))
    made = DoctorReport(there, "cuda", here.cpu, (RIGHT,), ("ties bf16 M=2 experts: too large",), MERGES)
    monkeypatch.setattr(doctor, "examine", lambda device, tell: made)
    return made


def test_without_a_gpu() -> None:
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert done.exit_code == 0
    for line in (
        "mergecore    0.1.0, Python ",
        "CPU          subnormal numbers are kept: ok",
        "not checked  the kernels:",
    ):
        assert line in done.stdout


def test_with_a_gpu(report: DoctorReport) -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "cuda:0 A card (9.0), 132 multiprocessors, 80.00 GB" in lines
    assert "driver nvidia 570.1" in lines
    assert "not checked ties bf16 M=2 experts: too large" in lines
    assert "operation dtype M size GB/s of a copy same bits as the CPU" in lines
    assert "ties bf16 3 embedding 2500 84% ok" in lines
    assert "merge device same bytes as the CPU" in lines
    assert "ties cuda:1 ok" in lines


def test_a_failed_check(report: DoctorReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda device, tell: replace(report, kernels=(RIGHT, WRONG)))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "gram fp32 2 q_proj, odd FAILED: triton on the GPU: number 0 is 1 instead of 2" in lines


def test_a_failed_check_of_the_cpu(report: DoctorReport, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = replace(report, cpu=(Finding("rounding", "it is off"),))
    monkeypatch.setattr(doctor, "examine", lambda device, tell: bad)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "rounding: FAILED: it is off" in done.stdout


def test_json(report: DoctorReport) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    facts = json.loads(done.stdout)
    assert facts["passed"] is True
    assert facts["environment"]["gpus"] == [
        {"name": "A card", "capability": "9.0", "memory_bytes": 80 * 10**9, "multiprocessors": 132}
    ]
    assert facts["cpu"][0] == {"what": "subnormal numbers are kept", "problem": ""}
    assert facts["kernels"][0]["share_of_copy"] == 0.84
    assert facts["skipped"] == ["ties bf16 M=2 experts: too large"]
