"""Is a result right? Each operation in float64, written without regard to speed, with bounds that are derived.

Output tensors are compared in some windows, measurements over all elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.cases.data import Data, part_of
from mergecore_kernels.cases.expected import EPSILON, exact_deltas, expected, selected, squared_deviations
from mergecore_kernels.operations import (
    CHUNK,
    HASH_RANGE,
    MAGNITUDE_LOW_BITS,
    Drop,
    Energies,
    Gram,
    GramColumns,
    GramRows,
    ImportanceQuantiles,
    KthMagnitudes,
    LargestVariances,
    MagnitudeCounts,
    MagnitudeSums,
    OverlapCounts,
    Trim,
    row_length,
    whole_rows,
)  # fmt: skip

BLOCK = 1 << 22
"""Elements that are looked at at a time."""
ADDITIONS = 32
"""In the compute dtype, one after another, in a sum over elements; all others are in float64."""
LEAST_PROBABILITY = 1e-8
"""Added to the probabilities of a softmax."""
QUANTILE_ERROR = 1e-5
"""Relative, of importances: small divergences are differences of nearly equal numbers."""
DEVIATIONS = 6.0
"""Of a random quantity that are taken for chance."""


def problem_of(data: Data, result: Any) -> str:
    """What is wrong with `result`, in words; nothing if it is right. `data` holds finite values."""
    spec = data.spec
    if data.out is not None:
        return next(filter(None, (_window_problem(window, result) for window in _windows(data))), "")
    if isinstance(spec, Gram):
        return _gram_problem(data, result)
    if isinstance(spec, (GramRows, GramColumns)):
        return _gram_vectors_problem(data, spec, result)
    if isinstance(spec, ImportanceQuantiles):
        return _quantiles_problem(data, spec, result)
    if isinstance(spec, KthMagnitudes):
        return _kth_problem(data, spec, result)
    if isinstance(spec, MagnitudeCounts):
        return _histogram_problem(data, spec, result)
    if isinstance(spec, MagnitudeSums):
        return _sums_problem(data, spec, result)
    if isinstance(spec, LargestVariances):
        return _variances_problem(data, spec, result)
    if isinstance(spec, Energies):
        return _energies_problem(data, spec, result)
    if isinstance(spec, OverlapCounts):
        return _counts_problem(data, spec, result)
    count = sum(int((~torch.isfinite(deltas[0])).sum()) for deltas in _blocks(data))
    return "" if result == count else f"{result} elements are said to be NaN or Inf, {count} are"


def _windows(data: Data) -> Iterator[Data]:
    """The first chunk, one in the middle and the last one, on the CPU; whole rows where the operation looks at them."""
    size = CHUNK if data.spec is None or row_length(data.spec) == 1 else whole_rows(CHUNK, row_length(data.spec))
    last = (data.n - 1) // size
    for number in sorted({0, last // 2, last}):
        yield part_of(data, number * size, min(size, data.n - number * size), "cpu")


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


def _blocks(data: Data, columns: int = 1) -> Iterator[list[Tensor]]:
    """The deltas in blocks of whole rows, where the data is."""
    return (exact_deltas(block) for block in _parts(data, columns))


def _parts(data: Data, columns: int) -> Iterator[Data]:
    size = whole_rows(BLOCK, columns)
    for at in range(0, data.n, size):
        piece = slice(at, at + size)
        base = None if data.base is None else data.base[piece]
        yield Data(data.spec, tuple(x[piece] for x in data.inputs), base, None)


def _gram_problem(data: Data, result: list[list[float]]) -> str:
    m = len(data.inputs)
    want = [[0.0] * m for _ in range(m)]
    for deltas in _blocks(data):
        for i in range(m):
            for j in range(m):
                want[i][j] += float(deltas[i] @ deltas[j])
    for i in range(m):
        for j in range(m):
            bound = (ADDITIONS + 1) * EPSILON[data.compute] * sqrt(want[i][i] * want[j][j])
            if not abs(result[i][j] - want[i][j]) <= bound:
                return f"the product of {i} and {j} is {result[i][j]}, not {want[i][j]} (± {bound:.2g})"
    return ""


def _gram_vectors_problem(data: Data, spec: GramRows | GramColumns, result: list[list[Any]]) -> str:
    m, by_row = len(data.inputs), isinstance(spec, GramRows)
    parts = []
    for deltas in _blocks(data, spec.columns):
        values = torch.stack(deltas).view(m, -1, spec.columns)
        parts.append(torch.einsum("irc,jrc->ijr" if by_row else "irc,jrc->ijc", values, values).to("cpu"))
    want = torch.cat(parts, dim=2) if by_row else torch.stack(parts).sum(dim=0)
    norms = torch.diagonal(want).T.sqrt()  # [M, R or C]
    bound = (ADDITIONS + 1) * EPSILON[data.compute] * norms[:, None] * norms
    got = torch.from_numpy(np.array(result))
    wrong = torch.nonzero(~((got - want).abs() <= bound))
    if not len(wrong):
        return ""
    i, j, place = wrong[0].tolist()
    vector = f"{'row' if by_row else 'column'} {place}"
    return f"the product of {i} and {j} in {vector} is {got[i, j, place]}, not {want[i, j, place]}"


def _quantiles_problem(data: Data, spec: ImportanceQuantiles, result: Any) -> str:
    """By the ranks of the numbers a little below and above each; those of rows are as exact as float32 makes them."""
    quantiles, divergences = result
    want, importances = [], []
    for part in _parts(data, spec.columns):
        assert part.base is not None
        x, base = (values.double().view(-1, spec.columns) for values in (part.inputs[0], part.base))
        p, q = (values.softmax(dim=1) + LEAST_PROBABILITY for values in (x, base))
        want.append((p * (p / q).log()).sum(dim=1).cpu())
        importances.append((exact_deltas(part)[0].view_as(x).abs().cpu() * want[-1][:, None]).flatten())
    rows, all_of_them = torch.cat(want), torch.cat(importances)
    off = (torch.from_numpy(divergences).double() - rows).abs()
    if not bool((off <= QUANTILE_ERROR * rows.abs()).all()):
        row = int(off.argmax())
        return f"the divergence of row {row} is {divergences[row]}, not {float(rows[row])}"
    for fraction, quantile in zip(spec.fractions, quantiles, strict=True):
        place = int(fraction * (data.n - 1))
        below = int((all_of_them < quantile * (1 - QUANTILE_ERROR)).sum())
        up_to = int((all_of_them <= quantile * (1 + QUANTILE_ERROR)).sum())
        if not below <= place < up_to:
            return f"{quantile} is at places {below} to {up_to} of the importances, not at {place}"
    return ""


def _kth_problem(data: Data, spec: KthMagnitudes, result: Any) -> str:
    """The k-th is between the ranks of its equals, and the cut keeps as many of them as are missing, by and large."""
    above, equal = [0] * len(spec.kept), [0] * len(spec.kept)
    for deltas in _blocks(data):
        for i, delta in enumerate(deltas):
            above[i] += int((delta.abs().float() > result[i].magnitude).sum())
            equal[i] += int((delta.abs().float() == result[i].magnitude).sum())
    problems = [_rank_problem(*counts) for counts in zip(result, spec.kept, above, equal, strict=True)]
    return next((f"of delta {i}, {problem}" for i, problem in enumerate(problems) if problem), "")


def _rank_problem(trim: Trim, k: int, above: int, equal: int) -> str:
    if not above < k <= above + equal:
        return f"{above} are above {trim.magnitude} and {equal} equal, for k = {k}"
    share, kept = (k - above) / equal, (trim.hash_cut + 1) / HASH_RANGE
    if abs(share - kept) > DEVIATIONS * sqrt(share * (1 - share) / equal) + 1 / equal:
        return f"the hash keeps {kept:.3f} of the equals instead of {share:.3f}"
    return ""


def _variances_problem(data: Data, spec: LargestVariances, result: Trim) -> str:
    varying = above = equal = 0
    for deltas in _blocks(data):
        deviations = squared_deviations(deltas, data.compute).float()
        varying += int((deviations != 0).sum())
        above += int((deviations > result.magnitude).sum())
        equal += int((deviations == result.magnitude).sum())
    k = int(torch.tensor(varying, dtype=torch.float32) * torch.tensor(spec.share, dtype=torch.float32))
    if k == 0:
        return "" if result.magnitude == inf else f"the magnitude is {result.magnitude}, but no element varies"
    problem = _rank_problem(result, k, above, equal)
    return f"of the squared deviations, {problem}" if problem else ""


def _histogram_problem(data: Data, spec: MagnitudeCounts, result: list[dict[int, int]]) -> str:
    want = [Counter[int]() for _ in spec.first_bits]
    for deltas in _blocks(data):
        for counts, delta, first_bits in zip(want, deltas, spec.first_bits, strict=True):
            bits = delta.abs().float().view(torch.int32)
            if first_bits is None:
                bits >>= MAGNITUDE_LOW_BITS
            else:
                bits = bits[bits >> MAGNITUDE_LOW_BITS == first_bits] % (1 << MAGNITUDE_LOW_BITS)
            found, numbers = (values.tolist() for values in torch.unique(bits, return_counts=True))
            counts.update(dict(zip(found, numbers, strict=True)))
    for i, (got, counts) in enumerate(zip(result, want, strict=True)):
        wrong = [bits for bits in sorted(got.keys() | counts.keys()) if got.get(bits, 0) != counts[bits]]
        if wrong:
            there, found = got.get(wrong[0], 0), counts[wrong[0]]
            return f"of delta {i}, {there} elements are said to have the bits {wrong[0]}, {found} have them"
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
        if not abs(before - total) <= ADDITIONS * EPSILON[data.compute] * total:
            return f"the magnitudes of delta {i} have the sum {before}, not {total}"
        if not abs(after - share * total) <= DEVIATIONS * sqrt(share * (1 - share) * squares):
            return f"of the magnitudes of delta {i}, {after} is kept of {total}"
    return ""


def _energies_problem(data: Data, spec: Energies, result: list[float]) -> str:
    want = [0.0] * len(data.inputs)
    for number, deltas in enumerate(_blocks(data)):
        chosen = selected(spec.selection, deltas, number * BLOCK, data.compute)
        want = [total + float((delta * chosen) @ delta) for total, delta in zip(want, deltas, strict=True)]
    for i, (got, energy) in enumerate(zip(result, want, strict=True)):
        if not abs(got - energy) <= (ADDITIONS + 1) * EPSILON[data.compute] * energy:
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
