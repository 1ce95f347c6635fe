"""What a merge can ask the device to do, as plain data.

A merge method yields measurements and returns a combination, all of them made of the classes below. It never sees a
tensor, and this file imports no torch: a plan can be made, printed and checked on a machine that has none.

Each class names one operation. Its arithmetic is defined by the torch twin in `torch_ops/`; every other backend gives
the same bits. Letters: M models (a base is extra), N elements of the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

CHUNK = 65_536
"""Elements. Reductions are defined on chunks counted from a tensor's start, so a tile is made of whole chunks."""
MAGNITUDE_LOW_BITS = 15
"""Of the 31 bits of a float32 magnitude: those that `MagnitudeCounts` leaves to a second pass."""
HASH_RANGE = 1 << 32
"""The counter hash gives integers in [0, HASH_RANGE)."""


@dataclass(frozen=True, slots=True)
class Key:
    """Names one stream of random numbers: one per use, seed, output tensor and model.

    The number of element i is a hash of i under this key, so it depends on nothing else: no device, tile or order.
    """

    text: str

    @classmethod
    def of(cls, use: str, seed: int, tensor: str, model: int) -> Key:
        """The key of `model` (its position in the config) at the output tensor `tensor`."""
        return cls(f"{use}\0{seed}\0{tensor}\0{model}")

    def words(self, block: int) -> tuple[int, int]:
        """Two 32-bit hash keys for the elements [block · 2³², (block + 1) · 2³²).

        Cheap hashes correlate between keys that differ in few bits, so a cryptographic one spreads them.
        """
        digest = sha256(f"{self.text}\0{block}".encode()).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


@dataclass(frozen=True, slots=True)
class Trim:
    """Keep the largest magnitudes: all |δ| above `magnitude`, and of those equal to it the ones whose hash is at most
    `hash_cut`. With the values that `KthMagnitudes` gives, exactly k elements are kept.

    With the magnitude and the cut of a second `Trim` of the same key as `upper` and `upper_cut`, what that one keeps is
    left out: the band between two ranks.

    Source: Yadav et al. 2023, arXiv:2306.01708 (TIES); the band: Davari & Belilovsky 2023, arXiv:2312.06795.
    """

    magnitude: float
    """The k-th largest |δ|, exact in float32. Infinity keeps nothing."""
    hash_cut: int
    """HASH_RANGE - 1 keeps all elements whose magnitude is equal."""
    key: Key
    upper: float = inf
    """Leave out the outliers above this magnitude, exact in float32; NaN is none of them. Infinity: there are none."""
    upper_cut: int = -1
    """Of those equal to `upper`, the ones whose hash is at most this are outliers too."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Keep each element with a probability, by its counter hash: kept if hash < threshold.

    Source: Yu et al. 2023, arXiv:2311.03099 (DARE).
    """

    threshold: int
    """Keep probability · 2³², rounded: 0 drops all, 2³² keeps all."""
    key: Key

    @classmethod
    def keeping(cls, density: float, key: Key) -> Drop:
        """Keep each element with the probability `density`, cut to [0, 1]."""
        return cls(round(min(max(density, 0.0), 1.0) * HASH_RANGE), key)


@dataclass(frozen=True, slots=True)
class RankedDrop:
    """Keep each element with a probability that rises with the rank of its magnitude within its row, from
    density - epsilon to density + epsilon. Elements of equal magnitude share the mean of their ranks.

    A row is a run along the last axis; a vector is one row. (mergekit ranks along axis 1, which differs for tensors of
    three axes: there, in fused experts, it isn't the axis of a row.)

    Source: Deep et al. 2024, arXiv:2406.11617 (DELLA).
    """

    density: float
    epsilon: float
    columns: int
    """Elements of a row."""
    key: Key


Mask: TypeAlias = Trim | Drop | RankedDrop | None
"""Which elements of one delta take part; None: all of them."""


# Measurements: a pass or a few over the inputs, small statistics out.


@dataclass(frozen=True, slots=True)
class Gram:
    """All dot products of the inputs, or of their deltas where there is a base.

    Gives a symmetric M × M list of lists of float64.
    """


@dataclass(frozen=True, slots=True)
class GramRows:
    """The same for each row, a run along the last axis.

    Gives a symmetric M × M list of lists of float64 arrays, with a number for each row.
    """

    columns: int
    """Elements of a row."""


@dataclass(frozen=True, slots=True)
class GramColumns:
    """The same for each column: the elements i, i + C, i + 2 C, ... of the flattened tensor, where C is `columns`.

    Gives a symmetric M × M list of lists of float64 arrays, with a number for each column.
    """

    columns: int
    """How many there are: for vectors along the first axis, the product of the sizes of all others."""


@dataclass(frozen=True, slots=True)
class KthMagnitudes:
    """For each delta the k-th largest magnitude, with the hash that decides among its equals.

    Gives `Trim`s that keep exactly k elements each. k = N gives None (nothing to trim), k = 0 a Trim that keeps
    nothing.
    """

    kept: tuple[int, ...]
    """[M] k of each delta, 0 ≤ k ≤ N. Of several ranks per delta, [2M] or more: first one of each delta, then the next
    of each, and so on."""
    keys: tuple[Key, ...]
    """As many: rank by rank the same ones."""


@dataclass(frozen=True, slots=True)
class MagnitudeCounts:
    """For each delta how often the bits of its float32 magnitudes occur: a dict from bits to the number of elements.

    The counts of several tensors can be added. With the first 16 bits and then the others, they give the exact k-th
    magnitude of them all.
    """

    first_bits: tuple[int | None, ...]
    """[M] None counts the first 16 bits; a number counts the other 15 bits of the magnitudes that begin with it."""


@dataclass(frozen=True, slots=True)
class MagnitudeSums:
    """For each delta (Σ|δ|, Σ|δ| over the elements that its mask keeps), as float64."""

    masks: tuple[Mask, ...]
    """[M]"""


@dataclass(frozen=True, slots=True)
class LargestVariances:
    """The elements whose deltas vary most over the models.

    Gives a selection that keeps k of them, k = trunc(`share` · number of elements whose variance isn't 0): a `Trim`
    whose magnitudes are those of Σ (δᵢ - mean)². Nothing is kept if k is 0; None keeps all, where k is N.

    Source: Wan et al. 2024, arXiv:2408.07990 (SCE).
    """

    share: float
    key: Key


@dataclass(frozen=True, slots=True)
class Energies:
    """For each delta Σ δ² over the selected elements, as float64."""

    selection: Trim | None
    """Of `LargestVariances`; None: all elements."""


@dataclass(frozen=True, slots=True)
class OverlapCounts:
    """For each delta how many of its active elements, |δ| > `threshold`, are shared with another model's active ones,
    and how many are its alone: pairs (shared, unique).
    """

    threshold: float


@dataclass(frozen=True, slots=True)
class ImportanceQuantiles:
    """Quantiles of the importance of the only input's elements: |δ| times KL(softmax(x) ‖ softmax(base)) of their row,
    which is a run along the last axis.

    Gives for each fraction f the one at place trunc(f · (N - 1)) in rising order, exact in float32; and the divergences
    of the rows, a float32 array.
    """

    fractions: tuple[float, ...]
    columns: int
    """Elements of a row."""
    n: int
    """N"""

    @property
    def kept(self) -> tuple[int, ...]:
        """For each fraction the place by falling importance, counted from 1."""
        return tuple(self.n - int(fraction * max(self.n - 1, 0)) for fraction in self.fractions)

    @property
    def wants_least(self) -> bool:
        """Whether one of them is the last place."""
        return self.n in self.kept


Measure: TypeAlias = (
    Gram
    | GramRows
    | GramColumns
    | KthMagnitudes
    | MagnitudeCounts
    | MagnitudeSums
    | LargestVariances
    | Energies
    | OverlapCounts
    | ImportanceQuantiles
)


# Combinations: one pass over the inputs, the output tensor out, rounded once.


@dataclass(frozen=True, slots=True)
class Copy:
    """The only input as it is, cast to the output dtype."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ wᵢ xᵢ, or base + Σ wᵢ (xᵢ - base) where there is a base."""

    weights: tuple[float, ...]
    """[M]"""


@dataclass(frozen=True, slots=True, eq=False)
class WeightedRows:
    """A `WeightedSum` with weights of its own for each row, a run along the last axis."""

    weights: tuple[NDArray[np.float64], ...]
    """[M] arrays, with a number for each row."""
    columns: int
    """Elements of a row."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightedColumns:
    """A `WeightedSum` with weights of its own for each column, as in `GramColumns`."""

    weights: tuple[NDArray[np.float64], ...]
    """[M] arrays, with a number for each column."""
    columns: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """base + λ · combined deltas, each δᵢ = xᵢ - base first masked, then multiplied by its rescale and weight.

    Without election the deltas are summed (and divided by Σ weights if `normalize`). With it, each element elects the
    sign of its weighted sum (zero counts as plus) and only the deltas of that sign are summed (and divided by the sum
    of their weights; zero deltas have no sign and no vote).

    Source: Yadav et al. 2023, arXiv:2306.01708, §4.2.
    """

    weights: tuple[float, ...]
    """[M]"""
    masks: tuple[Mask, ...]
    """[M]"""
    rescales: tuple[float, ...]
    """[M] factors that make up for what the masks took; 1 for none."""
    elect: bool
    normalize: bool
    scale: float
    """λ"""


@dataclass(frozen=True, slots=True)
class SelectiveConsensus:
    """base + Σ wᵢ δᵢ / Σ wᵢ over the models whose delta is selected and has the sign of the sum of selected deltas.

    Source: Wan et al. 2024, arXiv:2408.07990 (SCE).
    """

    weights: tuple[float, ...]
    """[M] 0 or more."""
    selection: Trim | None
    """Of `LargestVariances`; None: all elements."""


@dataclass(frozen=True, slots=True)
class OverlapMean:
    """base + the mean of the active deltas, |δ| > `threshold`; one that is alone is multiplied by its model's scale."""

    threshold: float
    scales: tuple[float, ...]
    """[M]"""


@dataclass(frozen=True, slots=True)
class NearSwap:
    """α x + (1 - α) base of the only input, where α is t divided by their distance, cut to [0, 1]."""

    t: float


@dataclass(frozen=True, slots=True, eq=False)
class TakeImportant:
    """The only input where its importance is at least `threshold`, rounded to float32; else the base."""

    threshold: float
    divergences: NDArray[np.float32]
    """[R] of the rows, as `ImportanceQuantiles` gives them."""
    columns: int
    """Elements of a row."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What is done to a run of elements x: scale · (x + noise · z), where z are standard normal random numbers."""

    noise: float
    scale: float
    key: Key
    """Of z, whose elements are counted from the start of the run."""


@dataclass(frozen=True, slots=True)
class Perturb:
    """The only input with a `Perturbation` of its own for each of its runs, which are of equal length."""

    runs: tuple[Perturbation, ...]
    elements: int
    """Of each run."""


@dataclass(frozen=True, slots=True)
class TileFunction:
    """Whatever a torch function makes of the tiles, for methods that have no operation of their own.

    It is called with the inputs, M x [n], and the base, [n], where there is one: copies of the values in float32, or
    float64 where an input is float64, which it may change. It returns [n]. A tile is any run of elements of the
    flattened tensors, so the function must treat each element by itself, or the result depends on the tiles.
    """

    function: Callable[[list[Tensor], Tensor | None], Tensor]


Combine: TypeAlias = (
    Copy
    | WeightedSum
    | WeightedRows
    | WeightedColumns
    | Consensus
    | SelectiveConsensus
    | OverlapMean
    | NearSwap
    | TakeImportant
    | Perturb
    | TileFunction
)


def row_length(spec: Measure | Combine) -> int:
    """Elements of a row where the operation looks at whole rows, else 1.

    Tiles of such a combination begin and end where rows do. Measurements take their tiles as they are.
    """
    if isinstance(spec, (MagnitudeSums, Consensus)):
        return next((mask.columns for mask in spec.masks if isinstance(mask, RankedDrop)), 1)
    return 1


def whole_rows(elements: int, columns: int) -> int:
    """The most elements, up to so many, that are whole rows of so many columns; one row if that is longer."""
    return max(elements // columns, 1) * columns
