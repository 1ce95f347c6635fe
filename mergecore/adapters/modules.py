"""The modules of a model as an adapter holds them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user asks for."""

    include: tuple[str, ...] = ()
    """Regular expressions, of which one must occur in a module's name; empty: all modules."""
    exclude: tuple[str, ...] = ()
    """Regular expressions, of which none may."""
    whole: tuple[str, ...] = ()
    """Modules to hold as they are, by their full name or its last part."""
    embeddings: bool = False
    """Whether embeddings and output heads get low-rank factors too."""
    skip_undecomposable: bool = False
    """Whether to leave out what can't be a product of factors, such as norms."""

    def selects(self, module: str) -> bool:
        included = not self.include or any(re.search(pattern, module) for pattern in self.include)
        return included and not any(re.search(pattern, module) for pattern in self.exclude)

    def wants_whole(self, module: str) -> bool:
        return module in self.whole or last_part(module) in self.whole

    def check(self) -> None:
        """Raises ConfigError for a pattern that is no regular expression."""
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError.at(option, f"`{pattern}` is no regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class Matrix:
    """A module whose weight gets low-rank factors."""

    module: str
    weight: InFiles
    """In the fine-tuned model."""
    table: bool = False
    """Whether it looks rows up. PEFT takes the factors of such a weight the other way round."""
    stored_transposed: bool = False
    """Whether the weight is stored as [in, out]."""
    bias: str | None = None
    """The name of its bias, which is held as it is."""

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    @property
    def transposed(self) -> bool:
        """Whether the factors are those of the stored matrix's transpose."""
        return self.table or self.stored_transposed

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns on disk. Of a convolution, those of its flattened kernels."""
        rows = self.weight.shape[0]
        return rows, self.weight.n // max(rows, 1)

    @property
    def smallest(self) -> int:
        """The largest rank there can be."""
        return min(self.stored_shape)

    @property
    def parameters_per_rank(self) -> int:
        return sum(self.stored_shape)


@dataclass(frozen=True, slots=True)
class Whole:
    """A module of which every tensor is held as it is, if one of them changed."""

    module: str
    tensors: tuple[str, ...]
    tied_head: str | None = None
    """The name of an output head that is this embedding, which PEFT wants as a second copy."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The modules of a model that an adapter may hold."""

    matrices: tuple[Matrix, ...]
    wholes: tuple[Whole, ...]
    unfit: tuple[str, ...]
    """Tensors that no adapter can hold. They must not have changed."""
    modules: tuple[str, ...]
    """All there are in the model, selected or not."""
    fan_in_fan_out: bool
    """Whether the matrices are stored as [in, out]."""
    resized: str | None = None
    """A tensor with a row per token of which the base has fewer or more."""
    notes: tuple[str, ...] = ()


def short_names(chosen: Collection[str], modules: Iterable[str]) -> list[str]:
    """Names that stand for the modules `chosen` and no others of `modules`, as PEFT matches them: the last parts of
    names where that says enough. Sorted.
    """
    others = set(modules).difference(chosen)
    ends = {last_part(module) for module in chosen}
    unique = {end for end in ends if not any(other.endswith(end) for other in others)}
    return sorted({last_part(module) if last_part(module) in unique else module for module in chosen})


def last_part(module: str) -> str:
    """`model.layers.0.mlp.up_proj` -> `up_proj`."""
    return module.rpartition(".")[2]


def module_of(name: str) -> str:
    """`model.norm.weight` -> `model.norm`."""
    return name.rpartition(".")[0]
