"""How fast the operations are: each checked, then timed beside a plain copy and the same thing written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mergecore.diagnostics.choices import require_known
from mergecore.diagnostics.devices import load_ops, used_alone
from mergecore.diagnostics.environment import Environment, look_around
from mergecore.errors import ConfigError, RunError
from mergecore.stream.backend import Backend, choose_backend
from mergecore.torch_device import pick_device
from mergecore_kernels.cases import (
    BY_HAND,
    DTYPES,
    OPERATIONS,
    SIZES,
    Case,
    copy_seconds,
    free_bytes,
    make_data,
    median_seconds,
    new_workspace,
    problem_of,
    run_case,
    select_cases,
)

ROUNDS = {"cpu": 7, "cuda": 30}
QUICK_ROUNDS = 3
DEFAULT_SIZES = {"cpu": ("q_proj",), "cuda": ("q_proj", "down_proj", "embedding", "experts")}
MOST_MODELS = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """One case, its medians."""

    operation: str
    dtype: str
    models: int
    size: str
    elements: int
    bytes_moved: int
    """The least possible: every input read once, the output written once."""
    steps_per_byte: float
    """Arithmetic intensity: adds, multiplications, comparisons and bit operations for each of these bytes."""
    seconds: float
    by_hand_seconds: float | None
    """The same written in plain torch; None where the memory is too small for it."""
    copy_bytes_per_s: float
    """Read and written by a plain copy of a tensor of this size and dtype, in the same run."""

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_moved / self.seconds

    @property
    def ns_per_element(self) -> float:
        return self.seconds / self.elements * 1e9

    @property
    def share_of_copy(self) -> float:
        return self.bytes_per_s / self.copy_bytes_per_s

    @property
    def speedup(self) -> float | None:
        """Over what is written by hand."""
        return None if self.by_hand_seconds is None else self.by_hand_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All that was timed, and where."""

    environment: Environment
    backend: Backend
    rounds: int
    timings: tuple[Timing, ...]
    skipped: tuple[str, ...]
    """Cases that were left out, each with its reason."""


def time_kernels(
    *,
    operations: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    sizes: Sequence[str] = (),
    models: Sequence[int] = (),
    device: str = "auto",
    backend: str = "auto",
    quick: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> BenchReport:
    """Time the cases that are named; what isn't named gets a choice that suits the device.

    quick: a few runs, and fewer cases. tell: is given a line per case when its turn comes.
    Raises ConfigError for a name that there is not, RunError if a result is wrong: what is wrong isn't timed.
    """
    require_known(operations, "--op", OPERATIONS)
    require_known(dtypes, "--dtype", DTYPES)
    require_known(sizes, "--size", SIZES)
    if wrong := [m for m in models if not 1 <= m <= MOST_MODELS]:
        raise ConfigError.at("--models", f"{wrong[0]} is not a number of models", f"1 to {MOST_MODELS}")
    chosen = choose_backend(backend, pick_device(device))
    kind = torch.device(chosen.device).type
    cases = select_cases(
        operations or OPERATIONS,
        dtypes or ("bf16" if quick else "bf16 fp32").split(),
        models or ((3,) if quick else (2, 3)),
        sizes or DEFAULT_SIZES[kind][: 1 if quick else None],
    )
    rounds = QUICK_ROUNDS if quick else ROUNDS[kind]
    timings, skipped = _time_all(cases, chosen, rounds, tell)
    return BenchReport(look_around(), chosen, rounds, timings, skipped)


def _time_all(
    cases: Iterable[Case], chosen: Backend, rounds: int, tell: Callable[[str], None]
) -> tuple[tuple[Timing, ...], tuple[str, ...]]:
    device = torch.device(chosen.device)
    timings, skipped = [], []

    @cache
    def copy_rate(dtype: str, n: int) -> float:
        x = torch.ones(n, dtype=DTYPES[dtype], device=device)
        return 2 * x.nbytes / copy_seconds(x, rounds)

    with used_alone(device):
        for case in cases:
            room = free_bytes(device)
            if case.memory_bytes > room:
                skipped.append(f"{case.name}: needs {_gb(case.memory_bytes)}, {_gb(room)} are free")
                continue
            tell(f"Timing {case.name}")
            seconds, by_hand = _time(case, chosen, rounds, case.by_hand_bytes <= room)
            timings.append(_timing(case, seconds, by_hand, copy_rate(case.dtype, case.size.n)))
    return tuple(timings), tuple(skipped)


def _time(case: Case, chosen: Backend, rounds: int, with_by_hand: bool) -> tuple[float, float | None]:
    """The medians of the case, checked first, and of the same by hand."""
    ops, device = load_ops(chosen.name), torch.device(chosen.device)
    data, workspace = make_data(case, device), new_workspace(device)
    if problem := problem_of(data, run_case(ops, data, workspace)):
        raise RunError.at(
            case.name,
            f"{chosen} gives a wrong result, so it is not timed: {problem}",
            "`mergecore doctor` checks all operations",
        )
    seconds = median_seconds(lambda: run_case(ops, data, workspace), device, rounds)
    if not with_by_hand:
        return seconds, None
    write = BY_HAND[case.operation.name]
    return seconds, median_seconds(lambda: write(data), device, QUICK_ROUNDS)  # few runs, as it is slow


def _timing(case: Case, seconds: float, by_hand_seconds: float | None, copy_bytes_per_s: float) -> Timing:
    return Timing(
        operation=case.operation.name,
        dtype=case.dtype,
        models=case.models,
        size=case.size.name,
        elements=case.size.n,
        bytes_moved=case.bytes_moved,
        steps_per_byte=case.steps_per_byte,
        seconds=seconds,
        by_hand_seconds=by_hand_seconds,
        copy_bytes_per_s=copy_bytes_per_s,
    )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
