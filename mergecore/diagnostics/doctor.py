"""Is all well on this machine? What it is, how its CPU rounds, and what its GPU makes of every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mergecore.diagnostics.batch_check import check_batches
from mergecore.diagnostics.cpu_arithmetic import Finding, check_cpu
from mergecore.diagnostics.devices import load_kernels
from mergecore.diagnostics.environment import Environment, look_around
from mergecore.diagnostics.kernel_check import KernelCheck, check_kernels, planned_cases
from mergecore.diagnostics.merge_check import MergeCheck, check_merges
from mergecore.torch_device import pick_device

NO_GPU = "the kernels: torch sees no GPU. The test suite checks them on the CPU, in triton's interpreter"
NO_MERGES = "merges on a GPU: there is none. The test suite does them on a stand-in for one"
NO_TRITON = "the kernels: triton is not installed. The GPU runs the operations in torch"


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All that a report of a problem should hold."""

    environment: Environment
    device: str
    """Where the kernels were checked; `cpu` if nowhere."""
    cpu: tuple[Finding, ...]
    kernels: tuple[KernelCheck, ...]
    skipped: tuple[str, ...]
    """What was not checked, and why."""
    merges: tuple[MergeCheck, ...] = ()

    @property
    def passed(self) -> bool:
        checks: tuple[Finding | KernelCheck | MergeCheck, ...] = (*self.cpu, *self.kernels, *self.merges)
        return all(check.passed for check in checks)


def examine(device: str = "auto", tell: Callable[[str], None] = lambda line: None) -> DoctorReport:
    """Check this machine. On a GPU it takes a few minutes. tell: is given a line per kernel when its turn comes.

    Raises RunError where there is no such device.
    """
    name = pick_device(device)
    environment, cpu = look_around(), check_cpu()
    if torch.device(name).type == "cpu":
        return DoctorReport(environment, name, cpu, (), (NO_GPU, NO_MERGES))
    kernels, gpu = load_kernels(), torch.device(name)
    checks, skipped = check_kernels(kernels, gpu, planned_cases(), tell)
    if kernels is None:
        skipped = (NO_TRITON, *skipped)
    else:
        tell("Checking batches of small tensors")
        checks = (*checks, *check_batches(kernels, gpu))
    tell("Checking whole merges")
    return DoctorReport(environment, name, cpu, checks, skipped, tuple(check_merges(name)))
