"""Trim each delta over the whole model: tensors that changed more keep more of their elements.

Two passes over all tensors count the bits of the magnitudes. The counts of all tensors together give the exact
magnitude of the last element to keep; of the elements with that very magnitude a hash of their positions keeps the
right share.

Source: Yadav et al. 2023, arXiv:2306.01708, §4.1, where the task vector that is trimmed is that of all parameters.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from mergecore.methods.method import Pass, Survey, Target
from mergecore_kernels.operations import HASH_RANGE, MAGNITUDE_LOW_BITS, Key, MagnitudeCounts, Mask, Trim


class HasDensity(Protocol):
    """Parameters with a density for each task."""

    @property
    def density(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the elements that one model keeps end."""

    magnitude: float
    hash_cut: int

    def trim(self, key: Key) -> Trim:
        """The mask of one tensor."""
        return Trim(self.magnitude, self.hash_cut, key)


NOTHING = Cut(inf, -1)
"""Keeps no element."""


def global_cuts(tensors: Sequence[tuple[HasDensity, Target]]) -> Survey:
    """The cut of each model, by its position in the config; None for a model that keeps all. Plain JSON data."""
    kept, total = _amounts(tensors)
    models = [model for model in total if 0 < kept[model] < total[model]]
    cuts: dict[int, Cut | None] = {m: None if kept[m] else NOTHING for m in total if m not in models}
    if not models:
        return _as_json(cuts)
    first = yield from _places(lambda target: (None,) * len(target.models), kept)
    # The elements that begin with the same bits: how many of them are kept, and where the last of these is.
    rest = {model: place.kept for model, place in first.items()}
    second = yield from _places(lambda target: tuple(first[model].bits for model in target.models), rest)
    return _as_json(cuts | {model: _cut(first[model], second[model]) for model in models})


def global_masks(target: Target) -> tuple[Mask, ...]:
    """The masks of one tensor's deltas, from the survey."""
    if target.survey is None:  # the merge is being planned
        return tuple(NOTHING.trim(key) for key in target.fixed_keys("trim"))
    cuts = [_from_json(target.survey[str(model)]) for model in target.models]
    keys = target.fixed_keys("trim")
    return tuple(None if cut is None else cut.trim(key) for cut, key in zip(cuts, keys, strict=True))


def _as_json(cuts: Mapping[int, Cut | None]) -> dict[str, tuple[str, int] | None]:
    """Magnitudes in hexadecimal, since JSON knows no infinity."""
    return {str(model): None if cut is None else (cut.magnitude.hex(), cut.hash_cut) for model, cut in cuts.items()}


def _from_json(cut: tuple[str, int] | None) -> Cut | None:
    return None if cut is None else Cut(float.fromhex(cut[0]), cut[1])


def _amounts(tensors: Sequence[tuple[HasDensity, Target]]) -> tuple[Counter[int], Counter[int]]:
    """For each model how many elements are kept, and how many there are."""
    kept: Counter[int] = Counter()
    total: Counter[int] = Counter()
    for p, target in tensors:
        for model, density in zip(target.models, p.density, strict=True):
            kept[model] += int(min(max(density, 0.0), 1.0) * target.n)
            total[model] += target.n
    return kept, total


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the k-th magnitude is."""

    bits: int
    kept: int
    """Of the elements with these bits: how many are kept."""
    found: int
    """Elements with these bits."""


def _places(
    first_bits: Callable[[Target], tuple[int | None, ...]], kept: dict[int, int]
) -> Generator[Pass, None, dict[int, _Place]]:
    """One pass over all tensors: the place of each model's k-th magnitude."""
    counts: dict[int, Counter[int]] = {model: Counter() for model in kept}

    def add(target: Target, answer: list[dict[int, int]]) -> None:
        for model, found in zip(target.models, answer, strict=True):
            counts[model].update(found)

    yield Pass(lambda p, target: MagnitudeCounts(first_bits(target)), add)
    return {model: _place(counts[model], k) for model, k in kept.items()}


def _place(counts: Counter[int], k: int) -> _Place:
    for bits in sorted(counts, reverse=True):
        if k <= counts[bits]:
            return _Place(bits, k, counts[bits])
        k -= counts[bits]
    return _Place(0, 0, 0)  # of no element


def _cut(first: _Place, second: _Place) -> Cut:
    bits = (first.bits << MAGNITUDE_LOW_BITS) | second.bits
    (magnitude,) = struct.unpack("<f", struct.pack("<I", bits))
    return Cut(magnitude, second.kept * HASH_RANGE // second.found - 1)
