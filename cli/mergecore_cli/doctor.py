"""`mergecore doctor`: what this machine is, and whether the kernels are right on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Quiet

if TYPE_CHECKING:
    from rich.table import Table

    from mergecore.diagnostics.doctor import DoctorReport
    from mergecore.diagnostics.environment import Environment
    from mergecore.diagnostics.kernel_check import KernelCheck
    from mergecore.diagnostics.merge_check import MergeCheck


def doctor(
    device: Annotated[str, typer.Option(help="The GPU to check: cuda, cuda:1; or cpu for none.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Check this machine: versions, how the CPU rounds, and on a GPU every kernel and whole merges, bit for bit.

    The report names no user, host or folder, so it can be sent with a bug report. The exit code is 1 if a check failed.
    """
    from mergecore.diagnostics.doctor import examine

    report = examine(device, tell=console.talk)
    if json:
        console.data_json(_facts(report))
    else:
        _print(report)
    if not report.passed:
        raise typer.Exit(1)


def environment_rows(found: Environment) -> dict[str, str]:
    """What to print of a machine."""
    builds = {"CUDA": found.cuda, "ROCm": found.rocm}
    build = next((f"built for {name} {number}" for name, number in builds.items() if number), "built for the CPU")
    memory = f", {console.gigabytes(found.memory_bytes)}" if found.memory_bytes else ""
    rows = {
        "mergecore": f"{found.mergecore}, Python {found.python}, {found.system}",
        "processor": f"{found.processor}, {console.count(found.cores, 'core')}{memory}",
        "torch": f"{found.torch}, {build}; numpy {found.numpy}",
        "triton": found.triton or "not installed",
        "kvikio": found.kvikio or "not installed",
        "driver": found.driver or "none",
    }
    for number, gpu in enumerate(found.gpus):
        memory = console.gigabytes(gpu.memory_bytes)
        rows[f"cuda:{number}"] = f"{gpu.name} ({gpu.capability}), {gpu.multiprocessors} multiprocessors, {memory}"
    return rows


def _print(report: DoctorReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in environment_rows(report.environment).items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    for finding in report.cpu:
        table.add_row("[bold]CPU[/bold]", f"{finding.what}: {_verdict(finding.problem)}")
    for line in report.skipped:
        table.add_row("[bold]not checked[/bold]", escape(line))
    console.data_table(table)
    if report.kernels:
        console.data("")
        console.data_table(_kernel_table(report.kernels))
    if report.merges:
        console.data("")
        console.data_table(_merge_table(report.merges))


def _kernel_table(checks: tuple[KernelCheck, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("operation", "dtype", "M", "size"):
        table.add_column(column)
    for column in ("GB/s", "of a copy"):
        table.add_column(column, justify="right")
    table.add_column("same bits as the CPU")
    for check in checks:
        speed = "" if check.bytes_per_s is None else f"{check.bytes_per_s / 1e9:.0f}"
        share = "" if check.share_of_copy is None else f"{check.share_of_copy:.0%}"
        size = check.size + (", odd" if check.odd else "")
        verdict = _verdict("; ".join(check.problems))
        table.add_row(check.operation, check.dtype, str(check.models), size, speed, share, verdict)
    return table


def _merge_table(checks: tuple[MergeCheck, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("merge", "device", "same bytes as the CPU"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.method, check.device, _verdict(check.problem))
    return table


def _verdict(problem: str) -> str:
    from rich.markup import escape

    return f"[bold red]FAILED[/bold red]: {escape(problem)}" if problem else "ok"


def _facts(report: DoctorReport) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(report)
    return {"passed": report.passed, **facts}
