"""Is a result right? Each operation in float64, written without regard to speed, with bounds that are derived.

Output tensors are compared in some windows, measurements over all elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from mergecore_kernels.cases.data import Data, part_of
from mergecore_kernels.cases.expected import EPSILON, exact_deltas, expected, selected
from mergecore_kernels.operations import (
    CHUNK,
    HASH_RANGE,
    Drop,
    Energies,
    Gram,
    KthMagnitudes,
    MagnitudeSums,
    OverlapCounts,
)  # fmt: skip

BLOCK = 1 << 22
"""Elements that are looked at at a time."""
ADDITIONS = 32
"""In float32, one after another, in a sum over elements; all others are in float64."""
DEVIATIONS = 6.0
"""Of a random quantity that are taken for chance."""


def problem_of(data: Data, result: Any) -> str:
    """What is wrong with `result`, in words; nothing if it is right. `data` holds finite values."""
    spec = data.spec
    if data.out is not None:
        return next(filter(None, (_window_problem(window, result) for window in _windows(data))), "")
    if isinstance(spec, Gram):
        return _gram_problem(data, result)
    if isinstance(spec, KthMagnitudes):
        return _kth_problem(data, spec, result)
    if isinstance(spec, MagnitudeSums):
        return _sums_problem(data, spec, result)
    if isinstance(spec, Energies):
        return _energies_problem(data, spec, result)
    if isinstance(spec, OverlapCounts):
        return _counts_problem(data, spec, result)
    count = sum(int((~torch.isfinite(deltas[0])).sum()) for deltas in _blocks(data))
    return "" if result == count else f"{result} elements are said to be NaN or Inf, {count} are"


def _windows(data: Data) -> Iterator[Data]:
    """The first chunk, one in the middle and the last one, on the CPU."""
    last = (data.n - 1) // CHUNK
    for chunk in sorted({0, last // 2, last}):
        yield part_of(data, chunk * CHUNK, min(CHUNK, data.n - chunk * CHUNK), "cpu")


def _window_problem(window: Data, result: Tensor) -> str:
    got = result[window.start : window.start + window.n].to("cpu")
    want, error = expected(window)
    off = (got.double() - want).abs()
    bound = torch.finfo(got.dtype).eps * want.abs() + torch.finfo(got.dtype).smallest_normal + error
    wrong = torch.nonzero(~(off <= bound)).flatten()
    if not len(wrong):
        return ""
    i = int(wrong[0])
    return f"element {window.start + i} is {float(got[i])}, not {float(want[i])} (± {float(bound[i]):.2g})"


def _blocks(data: Data) -> Iterator[list[Tensor]]:
    """The deltas block by block, where the data is."""
    for at in range(0, data.n, BLOCK):
        piece = slice(at, at + BLOCK)
        base = None if data.base is None else data.base[piece]
        yield exact_deltas(Data(data.spec, tuple(x[piece] for x in data.inputs), base, None))


def _gram_problem(data: Data, result: list[list[float]]) -> str:
    m = len(data.inputs)
    want = [[0.0] * m for _ in range(m)]
    for deltas in _blocks(data):
        for i in range(m):
            for j in range(m):
                want[i][j] += float(deltas[i] @ deltas[j])
    for i in range(m):
        for j in range(m):
            bound = (ADDITIONS + 1) * EPSILON * sqrt(want[i][i] * want[j][j])
            if not abs(result[i][j] - want[i][j]) <= bound:
                return f"the product of {i} and {j} is {result[i][j]}, not {want[i][j]} (± {bound:.2g})"
    return ""


def _kth_problem(data: Data, spec: KthMagnitudes, result: Any) -> str:
    """The k-th is between the ranks of its equals, and the cut keeps as many of them as are missing, by and large."""
    above, equal = [0] * len(spec.kept), [0] * len(spec.kept)
    for deltas in _blocks(data):
        for i, delta in enumerate(deltas):
            above[i] += int((delta.abs() > result[i].magnitude).sum())
            equal[i] += int((delta.abs() == result[i].magnitude).sum())
    for i, k in enumerate(spec.kept):
        if not above[i] < k <= above[i] + equal[i]:
            return f"of delta {i}, {above[i]} are above {result[i].magnitude} and {equal[i]} equal, for k = {k}"
        share, kept = (k - above[i]) / equal[i], (result[i].hash_cut + 1) / HASH_RANGE
        if abs(share - kept) > DEVIATIONS * sqrt(share * (1 - share) / equal[i]) + 1 / equal[i]:
            return f"of delta {i}, the hash keeps {kept:.3f} of the equals instead of {share:.3f}"
    return ""


def _sums_problem(data: Data, spec: MagnitudeSums, result: list[tuple[float, float]]) -> str:
    for i, mask in enumerate(spec.masks):
        assert isinstance(mask, Drop)
        share = mask.threshold / HASH_RANGE
        total = squares = 0.0
        for deltas in _blocks(data):
            total += float(deltas[i].abs().sum())
            squares += float(deltas[i] @ deltas[i])
        before, after = result[i]
        if not abs(before - total) <= ADDITIONS * EPSILON * total:
            return f"the magnitudes of delta {i} have the sum {before}, not {total}"
        if not abs(after - share * total) <= DEVIATIONS * sqrt(share * (1 - share) * squares):
            return f"of the magnitudes of delta {i}, {after} is kept of {total}"
    return ""


def _energies_problem(data: Data, spec: Energies, result: list[float]) -> str:
    want = [0.0] * len(data.inputs)
    for number, deltas in enumerate(_blocks(data)):
        chosen = selected(spec.selection, deltas, number * BLOCK)
        want = [total + float((delta * chosen) @ delta) for total, delta in zip(want, deltas, strict=True)]
    for i, (got, energy) in enumerate(zip(result, want, strict=True)):
        if not abs(got - energy) <= (ADDITIONS + 1) * EPSILON * energy:
            return f"the energy of delta {i} is {got}, not {energy}"
    return ""


def _counts_problem(data: Data, spec: OverlapCounts, result: list[tuple[int, int]]) -> str:
    want = torch.zeros(len(data.inputs), 2, dtype=torch.int64)
    for deltas in _blocks(data):
        active = torch.stack(deltas).abs() > spec.threshold  # [M, n]
        alone = active.sum(dim=0) == 1
        want += torch.stack([(active & ~alone).sum(dim=1), (active & alone).sum(dim=1)], dim=1).to("cpu")
    for i, (got, counts) in enumerate(zip(result, want.tolist(), strict=True)):
        if list(got) != counts:
            return f"of delta {i}, {got[0]} elements are said to be shared and {got[1]} unique, not {counts}"
    return ""
