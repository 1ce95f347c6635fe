"""The factors that several adapters have for the same modules, checked before one of them is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergecore.adapters.combine import SCHEMES
from mergecore.checkpoint.adapter import CONFIG_FILE, Adapter, updates_of
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import PlanError, Problem

_WITHOUT_BASE = "merge the models themselves, as base+adapter, with `mergecore merge`"


@dataclass(frozen=True, slots=True)
class AdapterFactors:
    """One adapter's factors of a module."""

    adapter: int
    """Its position in the config."""
    up: TensorRef
    """[R, rank], of a convolution with further axes of 1. LoRA's B."""
    down: TensorRef
    """[rank, C], of a convolution with channels and kernel in the place of C. LoRA's A."""
    scale: float
    """What their product is multiplied by."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class ModuleFactors:
    """All that there is for one module. All have the same shapes but for the rank."""

    module: str
    table: bool
    """Whether it looks rows up."""
    factors: tuple[AdapterFactors, ...]

    @property
    def rows(self) -> int:
        return self.factors[0].up.shape[0]

    @property
    def columns(self) -> int:
        return self.factors[0].down.n // self.factors[0].rank

    @property
    def total_rank(self) -> int:
        return sum(one.rank for one in self.factors)

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """Of LoRA's A as it is stored."""
        return rank, *self.factors[0].down.shape[1:]

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """Of LoRA's B as it is stored."""
        return self.rows, rank, *self.factors[0].up.shape[2:]


def module_factors(adapters: Sequence[Adapter], method: str) -> list[ModuleFactors]:
    """The modules that any of the adapters changes, in the order in which they are found.

    Raises PlanError, with all problems found, for adapters that can't be merged with each other by `method` or without
    their base model, and CheckpointError for factors that don't fit each other.
    """
    PlanError.raise_if_any(problem for adapter in adapters for problem in _unmergeable(adapter))
    found: dict[str, list[AdapterFactors]] = {}
    for i, adapter in enumerate(adapters):
        for module, parts in adapter.factors.items():
            ((_, update),) = updates_of(adapter, module, parts)
            found.setdefault(module, []).append(_of_adapter(i, update))
    modules = [
        ModuleFactors(module, any(module in adapter.embeddings for adapter in adapters), tuple(factors))
        for module, factors in found.items()
    ]
    PlanError.raise_if_any(problem for module in modules for problem in _misfits(module, adapters, method))
    return modules


def _of_adapter(position: int, update: LowRank) -> AdapterFactors:
    assert update.down is not None
    return AdapterFactors(position, update.up, update.down, update.scale)


def _unmergeable(adapter: Adapter) -> Iterator[Problem]:
    """What an adapter has that isn't a product of factors."""
    if not adapter.factors and not adapter.replaced:
        yield Problem(str(adapter.folder), "holds nothing to merge")
    if adapter.config.get("target_parameters"):
        what = "has factors of parameters (`target_parameters`), which can't be merged"
        yield Problem(str(adapter.folder / CONFIG_FILE), what, _WITHOUT_BASE)
    if adapter.replaced:
        name = next(iter(adapter.replaced))
        more = f" and {len(adapter.replaced) - 1} more tensors" if len(adapter.replaced) > 1 else ""
        what = f"holds `{name}`{more} as a whole, and what changed there can't be told without the base model"
        yield Problem(str(adapter.folder), what, f"{_WITHOUT_BASE}; or extract it with --skip-undecomposable")
    module = next((module for module, parts in adapter.factors.items() if "bias" in parts), None)
    if module is not None:
        what = f"has a bias for `{module}`, and only products of two factors can be merged"
        yield Problem(str(adapter.folder), what, _WITHOUT_BASE)


def _misfits(module: ModuleFactors, adapters: Sequence[Adapter], method: str) -> Iterator[Problem]:
    """Factors of one module that differ in what must be the same."""
    first, *others = module.factors
    for other in others:
        folders = adapters[first.adapter].folder, adapters[other.adapter].folder
        shapes = [f"[{one.up.shape[0]} rows, {list(one.down.shape[1:])}]" for one in (first, other)]
        if (first.up.shape[0], first.down.shape[1:]) != (other.up.shape[0], other.down.shape[1:]):
            what = f"its update of `{module.module}` has {shapes[1]}, but that of {folders[0]} {shapes[0]}"
            yield Problem(str(folders[1]), what, "were both trained on the same model?")
            return
        if method in SCHEMES and first.rank != other.rank:
            what = (
                f"has rank {other.rank} for `{module.module}`, but {folders[0]} has rank {first.rank}, and `{method}` "
                "combines factors of one rank"
            )
            yield Problem(str(folders[1]), what, "`svd` and `cat` take any ranks")
            return
