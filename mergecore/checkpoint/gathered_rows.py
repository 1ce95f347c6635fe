"""A matrix that is put together, row by row, from matrices on disk: embeddings whose tokens have other numbers now."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergecore.checkpoint.dtypes import Dtype, Shaped, promote
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.checkpoint.safetensors_file import TensorRef

MEAN = -1
"""In the place of a part: the mean of all rows that aren't such a mean themselves."""
_LEFT_OUT = -2


@dataclass(frozen=True, slots=True)
class Entries:
    """What some consecutive rows are made of. Each row has any number of entries, of which it is the mean."""

    targets: NDArray[np.int64]
    """[E] The row, counted from the first of them, ascending."""
    parts: NDArray[np.int16]
    """[E] The matrix that a row is taken from; ascending within a row."""
    rows: NDArray[np.int32]
    """[E] The row there."""
    counts: NDArray[np.int64]
    """[R] Entries of each row; zero for a row of zeros."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """For each row of a new matrix, the rows of others that it is made of. Compared and hashed by its digest."""

    digest: str
    n: int = field(compare=False)
    """Rows of the new matrix."""
    offsets: NDArray[np.int32] = field(compare=False, repr=False)
    """[R + 1] Where the entries of each row begin, and where the last one's end."""
    parts: NDArray[np.int16] = field(compare=False, repr=False)
    """[E] As in `Entries`."""
    rows: NDArray[np.int32] = field(compare=False, repr=False)
    """[E]"""
    first: int = field(default=0, compare=False)
    """The row that `offsets` begins with: not 0 where only some rows are known."""

    @classmethod
    def of(cls, counts: NDArray[np.int64], parts: NDArray[np.int16], rows: NDArray[np.int32]) -> RowMap:
        """From the number of entries of each row, and the entries."""
        offsets = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=offsets[1:])
        digest = hashlib.sha256(b"".join(array.tobytes() for array in (offsets, parts, rows)))
        return cls(digest.hexdigest()[:32], len(counts), offsets, parts, rows)

    @property
    def has_mean(self) -> bool:
        """Whether a row is the mean of the others."""
        return bool((self.parts == MEAN).any())

    def entries(self, first: int, last: int) -> Entries:
        """Those of the rows [first, last)."""
        offsets = self.offsets[first - self.first : last - self.first + 1]
        chosen = slice(offsets[0], offsets[-1])
        counts = np.diff(offsets).astype(np.int64)
        return Entries(np.repeat(np.arange(last - first), counts), self.parts[chosen], self.rows[chosen], counts)

    def within(self, first: int, last: int) -> RowMap:
        """What is needed to read the rows [first, last), and not more."""
        entries = self.entries(first, last)
        if (entries.parts == MEAN).any():
            return self
        offsets = self.offsets[first - self.first : last - self.first + 1]
        digest = f"{self.digest}:{first}:{last}"
        return RowMap(digest, self.n, offsets - offsets[0], entries.parts.copy(), entries.rows.copy(), first)

    def of_parts(self, parts: Sequence[int]) -> RowMap:
        """The same without the entries of other parts; these are numbered by their place in the sequence."""
        place = np.full(max(self.parts.max(initial=0), *parts, 0) + 2, _LEFT_OUT, np.int16)
        place[list(parts)] = np.arange(len(parts))
        place[MEAN] = MEAN
        found = place[self.parts]
        kept = found != _LEFT_OUT
        targets = np.repeat(np.arange(self.n), np.diff(self.offsets))[kept]
        return RowMap.of(np.bincount(targets, minlength=self.n), found[kept], self.rows[kept])

    def is_start_of(self, part: int) -> bool:
        """Whether each row is the row of the same number in one matrix, so that nothing has to be gathered."""
        return (
            len(self.rows) == self.n
            and bool((self.parts == part).all())
            and np.array_equal(self.offsets, np.arange(self.n + 1))
            and np.array_equal(self.rows, np.arange(self.n))
        )


@dataclass(frozen=True, slots=True)
class GatheredRows(Shaped):
    """Where the rows of a matrix lie on disk. It is read like one that lies there as a whole."""

    parts: tuple[TensorRef, ...]
    rows: RowMap
    dtype: Dtype
    """That the rows are read as: float32 at least, where a row is a mean."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[TensorRef], rows: RowMap) -> GatheredRows:
        """parts: matrices that differ at most in the number of their rows, and in their types."""
        dtypes = {part.dtype for part in parts}
        exact = len(dtypes) == 1 and int(np.diff(rows.offsets).max(initial=0)) <= 1 and not rows.has_mean
        stored = promote(dtypes)
        dtype = next(iter(dtypes)) if exact else Dtype.F64 if stored is Dtype.F64 else Dtype.F32
        return cls(tuple(parts), rows, dtype, (rows.n, *parts[0].shape[1:]))

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return prod(self.shape[1:])

    @property
    def stored_dtype(self) -> Dtype:
        """That the parts on disk have in common."""
        return promote(part.dtype for part in self.parts)

    def within(self, start: int, stop: int) -> GatheredRows:
        """What is needed to read the elements [start, stop), and not more."""
        return replace(self, rows=self.rows.within(start // self.columns, -(-stop // self.columns)))


Stored: TypeAlias = TensorRef | GatheredRows | JoinedTensors | InlineTensor
"""A tensor that can be read."""
