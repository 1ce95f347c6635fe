"""Does a GPU give the bits of the CPU? Every operation on tensors of real sizes, and how fast it is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from mergecore.diagnostics.devices import used_alone
from mergecore_kernels import torch_ops
from mergecore_kernels.cases import (
    DTYPES,
    OPERATIONS,
    SIZES,
    Case,
    Data,
    Ops,
    copy_seconds,
    difference,
    free_bytes,
    make_data,
    median_seconds,
    new_workspace,
    part_of,
    run_case,
    select_cases,
)
from mergecore_kernels.operations import CHUNK

ROUNDS = 10
WHOLE = 1 << 30
"""Elements above which the CPU looks at a few chunks instead of the whole tensor."""
TWIN_ELEMENTS = SIZES["q_proj"].n
"""The largest tensor on which the torch twin is run on the GPU: it takes many launches."""
BOUNDARY = 1 << 31
"""The element that they look at above all: there 32 bits end."""
PIECE = 4 * CHUNK
"""Elements that they look at, a half of them on each side of it."""


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """One case on the GPU."""

    operation: str
    dtype: str
    models: int
    size: str
    odd: bool
    """Unaligned, with rare values."""
    problems: tuple[str, ...]
    """What differs from the CPU's torch twin; empty if no bit does."""
    bytes_per_s: float | None
    """By the least possible bytes; None where it wasn't timed."""
    share_of_copy: float | None

    @property
    def passed(self) -> bool:
        return not self.problems


def planned_cases() -> Iterator[tuple[Case, bool]]:
    """What is checked, and whether it is timed.

    All operations: in each dtype with few models, with many, on odd tensors, and at the size of a vocabulary. Those
    that give a tensor: beyond 2³¹ elements.
    """
    for case in select_cases(OPERATIONS, DTYPES, (2, 3), ("q_proj",)):
        yield case, True
        if case.models != 2:
            yield replace(case, odd=True), False
    for case in select_cases(OPERATIONS, ("bf16",), (1, 8, 16), ("q_proj",)):
        if not case.operation.single:
            yield case, False
    for case in select_cases(OPERATIONS, ("bf16",), (3,), ("down_proj", "embedding")):
        yield case, True
    writers = [name for name, operation in OPERATIONS.items() if operation.writes]
    for case in select_cases(writers, ("bf16",), (2,), ("large_experts",)):
        yield case, False


def check_kernels(
    kernels: Ops | None,
    device: torch.device,
    cases: Iterator[tuple[Case, bool]],
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[KernelCheck, ...], tuple[str, ...]]:
    """The checks, and what was left out, with reasons. The torch twin is run on the device too, on the smaller tensors.

    kernels: None where triton is missing; then the twin alone is checked, and timed, on the smaller tensors.
    """
    checks, skipped = [], []

    @cache
    def copy_rate(dtype: str, size: str) -> float:
        x = torch.ones(SIZES[size].n, dtype=DTYPES[dtype], device=device)
        return 2 * x.nbytes / copy_seconds(x, ROUNDS)

    for case, timed in cases:
        if kernels is None and case.size.n > TWIN_ELEMENTS:
            continue
        needs = {"the GPU": (case.memory_bytes, device), "the host": (_host_bytes(case), torch.device("cpu"))}
        missing = [name for name, (n_bytes, where) in needs.items() if n_bytes > free_bytes(where)]
        if missing:
            needed = max(n_bytes for n_bytes, _ in needs.values()) / 1e9
            skipped.append(f"{case.name}: {needed:.1f} GB don't fit the free memory of {' and '.join(missing)}")
            continue
        tell(f"Checking {case.name}")
        with used_alone(device):
            checks.append(_check(case, kernels, device, copy_rate if timed else None))
    return tuple(checks), tuple(skipped)


def _check(
    case: Case, kernels: Ops | None, device: torch.device, copy_rate: Callable[[str, str], float] | None
) -> KernelCheck:
    rate = share = None
    try:
        copy = copy_rate(case.dtype, case.size.name) if copy_rate else None
        data = make_data(case, device)
        problems = list(_problems(case, kernels, data))
        if copy is not None:
            ops, workspace = kernels or torch_ops, new_workspace(device)
            rate = case.bytes_moved / median_seconds(lambda: run_case(ops, data, workspace), device, ROUNDS)
            share = rate / copy
    except Exception as error:  # a broken kernel is what a doctor is for: the others are still looked at
        problems = [anonymous(f"{type(error).__name__}: {error}")]
    return KernelCheck(
        operation=case.operation.name,
        dtype=case.dtype,
        models=case.models,
        size=case.size.name,
        odd=case.odd,
        problems=tuple(problems),
        bytes_per_s=rate,
        share_of_copy=share,
    )


def _problems(case: Case, kernels: Ops | None, data: Data) -> Iterator[str]:
    """The differences of the kernel's result and of the twin's on the device from the twin's on the CPU."""
    wanted = list(_wanted(case, data))
    backends: dict[str, Ops] = {} if kernels is None else {"triton": kernels}
    if case.size.n <= TWIN_ELEMENTS:
        backends["torch"] = torch_ops
    for name, ops in backends.items():
        if data.out is not None:
            data.out.fill_(torch.nan)
        result = run_case(ops, data, new_workspace(data.device))
        for part, want in wanted:
            got = result if part.n == data.n else result[part.start : part.start + part.n]
            if problem := difference(got, want):
                yield f"{name} on the GPU, from element {part.start} on: {problem}"


def _wanted(case: Case, data: Data) -> Iterator[tuple[Data, Any]]:
    """The twin's result on the CPU: of the whole tensor, or of parts of it."""
    n = data.n
    whole = n <= WHOLE or not case.operation.writes
    starts = [0] if whole else [0, BOUNDARY - PIECE // 2, (n - 1) // CHUNK * CHUNK]
    for start in starts:
        part = part_of(data, start, n if whole else min(PIECE, n - start), "cpu")
        yield part, run_case(torch_ops, part, new_workspace("cpu"))


def _host_bytes(case: Case) -> int:
    return case.memory_bytes if case.size.n <= WHOLE or not case.operation.writes else case.memory_bytes // 100


def anonymous(message: str) -> str:
    """The first line of a message, without folders: a report shouldn't say where a user's files are."""
    lines = message.strip().splitlines() or [""]
    return re.sub(r"(?:[A-Za-z]:)?(?:[\\/][^\\/\s:'\"]+)+[\\/]", "", lines[0])[:300]
