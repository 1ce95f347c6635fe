"""Sums in a fixed order."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergecore_kernels.torch_ops import reduction_tree
from mergecore_kernels.torch_ops.reduction_tree import LANES, ROWS, TreeSums, adjacent_pair_tree
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace


def tree(values):
    """Adjacent pairs, written out."""
    values = list(values)
    while len(values) > 1:
        values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
    return values[0]


def defined_sum(values):
    """The definition, with Python loops over rows and chunks: values numpy [n] float32 or float64."""
    n_chunks = -(-len(values) // CHUNK)
    filled = np.zeros(n_chunks * CHUNK, values.dtype)
    filled[: len(values)] = values
    lanes = np.zeros(LANES, np.float64)
    for c, chunk in enumerate(filled.reshape(n_chunks, ROWS, LANES)):
        total = chunk[0].copy()
        for row in chunk[1:]:
            total = total + row
        lanes[c % LANES] += tree(total.astype(np.float64))
    return tree(lanes)


def sums_of(values, workspace, count=1):
    sums = TreeSums(count, workspace)
    for at in range(0, values.numel(), CHUNK):
        for index in range(count):
            sums.add(index, values[at : at + CHUNK] * (index + 1))
        sums.advance(CHUNK)
    return sums.totals()


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 18 * CHUNK + 777])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_definition_bit_for_bit(workspace, n, dtype):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=dtype) ** 3
    want = [float(defined_sum((values * (i + 1)).numpy())) if n else 0.0 for i in range(2)]
    assert sums_of(values, workspace, 2) == want


@pytest.mark.parametrize("einsum_rounds", [True, False])
@pytest.mark.parametrize("n", [1, CHUNK, 2 * CHUNK, 2 * CHUNK - 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_rounded(workspace, monkeypatch, n, dtype, einsum_rounds):
    if not einsum_rounds:
        monkeypatch.setattr(reduction_tree, "_einsum_rounds_products", lambda: False)
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, generator=generator, dtype=dtype) ** 3 for _ in range(2))
    sums = TreeSums(2, workspace)
    sums.add_products(0, a, b)
    sums.add_products(1, a, a)
    sums.advance(n)
    assert sums.totals() == [float(defined_sum((a * b).numpy())), float(defined_sum((a * a).numpy()))]


@pytest.mark.parametrize(
    "other",
    [
        lambda a, b: (a.astype(np.float64) * b).reshape(-1, ROWS, LANES).sum(axis=1).astype(np.float32),
        lambda a, b: np.add.reduce((a * b).reshape(-1, ROWS, LANES)[:, ::-1], axis=1),
    ],
    ids=["rounds once", "from the last row on"],
)
def test_another_einsum_is_not_used(monkeypatch, other):
    monkeypatch.setattr(reduction_tree, "_add_rows_of_products", other)
    reduction_tree._einsum_rounds_products.cache_clear()
    try:
        assert not reduction_tree._einsum_rounds_products()
    finally:
        reduction_tree._einsum_rounds_products.cache_clear()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_products_that_are_not_finite(workspace, value):
    a = torch.full((CHUNK,), value)
    sums = TreeSums(1, workspace)
    sums.add_products(0, a, a)
    sums.advance(CHUNK)
    assert sums.totals() == [pytest.approx(value * value if value != 1e30 else float("inf"), nan_ok=True)]


def test_chunks_beyond_the_last_lane_start_again_at_the_first(workspace):
    """More than LANES chunks: 2²⁷ elements. Chunks of one element stand for them, as the rest would be zeros."""
    n_chunks = LANES + 19
    values = torch.randn(n_chunks, generator=torch.Generator().manual_seed(5))
    sums = TreeSums(1, workspace)
    lanes = np.zeros(LANES)
    for c in range(n_chunks):
        sums.add(0, values[c : c + 1])
        sums.advance(CHUNK)
        lanes[c % LANES] += float(values[c])
    assert sums.totals() == [float(tree(lanes))]


@given(st.integers(0, 7), st.randoms(use_true_random=False))
def test_tree_adds_adjacent_pairs(levels, random):
    values = [random.uniform(-1, 1) * 2.0 ** random.randint(-60, 60) for _ in range(2**levels)]
    assert float(adjacent_pair_tree(torch.tensor(values, dtype=torch.float64))) == tree(values)


def test_error_is_that_of_32_terms():
    """Each lane adds ROWS terms in float32, so the relative error of a sum of positive terms is below ROWS · 2⁻²⁴."""
    values = torch.rand(16 * CHUNK, generator=torch.Generator().manual_seed(1))
    (total,) = sums_of(values, Workspace("cpu", 0))
    exact = sum((Fraction(float(x)) for x in values.double().view(-1, CHUNK).sum(1)), Fraction(0))
    assert abs(total - float(exact)) < ROWS * 2.0**-24 * float(exact)


def test_overflow_is_infinity_without_a_warning(workspace):
    assert sums_of(torch.full((CHUNK,), 3e38), workspace) == [float("inf")]


def test_sums_do_not_remember_the_last_ones(workspace):
    values = torch.randn(CHUNK + 5, generator=torch.Generator().manual_seed(2))
    first = sums_of(values, workspace)
    sums_of(values * 1000, workspace, 3)
    assert sums_of(values, workspace) == first
