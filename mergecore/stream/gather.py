"""Reads matrices that are put together from the rows of others, with few calls for many rows.

The rows that a stretch of such a matrix needs from one file are sorted. Those that lie near each other there are read
together, with what is between them, and then take their places. A stretch that is a run of consecutive rows of one
file, as most are where vocabularies are nearly the same, is read as such.

Numbers: a row that is copied keeps its bits. A mean of rows is their sum in float32 (float64 if one of them is), added
in the order of the models, divided by their number, each step rounded once; it is not rounded to the type of the
file. The mean of all rows of a matrix is summed in float64 by a fixed tree over fixed blocks, so it has the same bits
for all sizes of tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.gathered_rows import MEAN, Entries, GatheredRows
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.stream.torch_dtypes import torch_dtype

BLOCK_BYTES = 1 << 20
"""Read at once, at most; one row at least."""
_GAP_BYTES = 1 << 10
"""Between two rows that are read together: to copy so much costs less than another call."""
_MEAN_ELEMENTS = 1 << 17
"""In a block of the mean of all rows."""

Bytes = NDArray[np.uint8]
ReadElements = Callable[[TensorRef, int, memoryview], None]
"""Fills memory with a tensor's elements from one on."""


class RowReader:
    """Reads gathered matrices. For one thread."""

    def __init__(self, read_elements: ReadElements) -> None:
        self._read_elements = read_elements
        self._means: dict[GatheredRows, Bytes] = {}
        self._buffers: dict[str, Bytes] = {}

    def read(self, tensor: GatheredRows, start: int, into: memoryview) -> None:
        """Fill `into` with the elements from `start` on. Raises CheckpointError."""
        columns, size = tensor.columns, tensor.dtype.size
        first, last = start // columns, -(-(start + len(into) // size) // columns)
        entries = tensor.rows.entries(first, last)
        skipped = start - first * columns
        if _is_run(entries) and tensor.parts[entries.parts[0]].dtype is tensor.dtype:
            self._read_elements(tensor.parts[entries.parts[0]], int(entries.rows[0]) * columns + skipped, into)
            return
        means = entries.targets[entries.parts == MEAN]
        mean = self._mean(tensor) if len(means) else None  # before the rows, as it takes the same memory
        rows = self._rows(tensor, entries)
        if mean is not None:
            rows[means] = mean
        into[:] = _memory(rows)[skipped * size : skipped * size + len(into)]

    def _rows(self, tensor: GatheredRows, entries: Entries) -> Bytes:
        """[R, bytes of a row] The rows, but for the means of all others, which are zero. They hold until the next."""
        rows = self._buffer("rows", len(entries.counts), tensor.columns * tensor.dtype.size)
        rows[entries.counts == 0] = 0
        rows[entries.targets[entries.parts == MEAN]] = 0
        is_first = np.ones(len(entries.targets), bool)
        is_first[1:] = entries.targets[1:] != entries.targets[:-1]
        for part, ref in enumerate(tensor.parts):
            chosen = np.flatnonzero(entries.parts == part)
            if len(chosen):
                chosen = chosen[np.argsort(entries.rows[chosen], kind="stable")]
                found = self._stored(ref, entries.rows[chosen].astype(np.int64))
                self._place(rows, tensor.dtype, entries.targets[chosen], is_first[chosen], found, ref.dtype)
        several = entries.counts > 1
        if several.any():
            values = _numbers(rows, tensor.dtype)
            values[several] /= entries.counts[several, None].astype(values.dtype)
        return rows

    def _stored(self, ref: TensorRef, numbers: NDArray[np.int64]) -> Bytes:
        """[R, bytes of a row] The rows of these numbers, which don't descend, as they are stored."""
        columns = ref.n // ref.shape[0]
        row_bytes = columns * ref.dtype.size
        found = self._buffer("stored", len(numbers), row_bytes)
        memory = _memory(found)
        steps = np.diff(numbers)
        is_apart = (steps == 0) | (steps > 1 + _GAP_BYTES // row_bytes)  # a row that is wanted twice is read twice
        in_other_block = np.diff(numbers // max(BLOCK_BYTES // row_bytes, 1)) > 0
        begins = [0, *(np.flatnonzero(is_apart | in_other_block) + 1).tolist(), len(numbers)]
        for begin, end in itertools.pairwise(begins):
            first, n = int(numbers[begin]), int(numbers[end - 1] - numbers[begin]) + 1
            if n == end - begin:
                self._read_elements(ref, first * columns, memory[begin * row_bytes : end * row_bytes])
            else:
                block = self._buffer("block", n, row_bytes)
                self._read_elements(ref, first * columns, _memory(block))
                found[begin:end] = block[numbers[begin:end] - first]
        return found

    def _place(
        self,
        rows: Bytes,
        dtype: Dtype,
        targets: NDArray[np.int64],
        is_first: NDArray[np.bool_],
        found: Bytes,
        stored: Dtype,
    ) -> None:
        """Put rows where they belong: the first of each mean as it is, so that also a zero keeps its sign."""
        if is_first.all() and (np.diff(targets) == 1).all():
            _convert(found, stored, rows[targets[0] : targets[0] + len(targets)], dtype)
            return
        if stored is not dtype:
            converted = self._buffer("converted", len(found), rows.shape[1])
            _convert(found, stored, converted, dtype)
            found = converted
        rows[targets[is_first]] = found[is_first]
        if not is_first.all():
            values = _numbers(rows, dtype)
            values[targets[~is_first]] += _numbers(found, dtype)[~is_first]

    def _buffer(self, name: str, n: int, row_bytes: int) -> Bytes:
        """[n, row_bytes] Memory that is used again: fresh pages cost more than what is done with them."""
        held = self._buffers.get(name)
        if held is None or len(held) < n * row_bytes:
            self._buffers.pop(name, None)
            held = self._buffers[name] = np.empty(n * row_bytes, np.uint8)
        return held[: n * row_bytes].reshape(n, row_bytes)

    def _mean(self, tensor: GatheredRows) -> Bytes:
        """[bytes of a row] The mean of all rows that aren't such a mean themselves."""
        if tensor not in self._means:
            step = max(_MEAN_ELEMENTS // tensor.columns, 1)
            total = np.zeros(tensor.columns)
            count = 0
            for first in range(0, tensor.rows.n, step):
                entries = tensor.rows.entries(first, min(first + step, tensor.rows.n))
                rows = _numbers(self._rows(tensor, entries), tensor.dtype)
                total += _sum(rows.astype(np.float64))
                count += len(entries.counts) - int((entries.parts == MEAN).sum())
            self._means = {tensor: (total / max(count, 1)).astype(rows.dtype).view(np.uint8)}
        return self._means[tensor]


def _is_run(entries: Entries) -> bool:
    """Whether these are consecutive rows of one matrix."""
    parts, rows = entries.parts, entries.rows
    return (
        len(rows) == len(entries.counts)
        and bool((entries.counts == 1).all())
        and parts[0] != MEAN
        and bool((parts == parts[0]).all())
        and bool((np.diff(rows) == 1).all())
    )


def _memory(rows: Bytes) -> memoryview:
    """The rows' bytes, one after the other."""
    array: Any = rows.reshape(-1)
    return memoryview(array)


def _convert(rows: Bytes, stored: Dtype, into: Bytes, wanted: Dtype) -> None:
    """Fill [R, bytes of a row] with the same numbers in another type, which holds them exactly."""
    if stored is wanted:
        into[:] = rows
    else:
        values = torch.from_numpy(rows).view(torch_dtype(stored))
        torch.from_numpy(into).view(torch_dtype(wanted)).copy_(values)


def _numbers(rows: Bytes, dtype: Dtype) -> NDArray[Any]:
    """[R, C] The same memory as numbers. Float32 and float64 only: no others are computed with."""
    return rows.view(np.float64 if dtype is Dtype.F64 else np.float32)


def _sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C] The sum of [R, C], by halves: the bits don't depend on how a library sums."""
    while len(rows) > 1:
        half = len(rows) // 2
        paired = rows[:half] + rows[half : 2 * half]
        if len(rows) % 2:
            paired[0] += rows[-1]
        rows = paired
    total: NDArray[np.float64] = rows[0]
    return total
