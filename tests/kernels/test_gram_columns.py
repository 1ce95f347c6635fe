"""Gram matrices of columns."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import GramColumns
from mergecore_kernels.torch_ops import CHUNK, Workspace, measure
from mergecore_kernels.torch_ops.gram_columns import GROUP_ROWS

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
WORKSPACE = Workspace("cpu", 0)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 3 * GROUP_ROWS),
    columns=st.integers(1, 40),
    dtypes=st.lists(st.sampled_from([BF16, F32, F64]), min_size=1, max_size=4),
    deltas=st.booleans(),
)
def test_close_to_exact(cut, fine_tunes, rows, columns, dtypes, deltas):
    base, models = fine_tunes(rows * columns, (dtypes[0], *dtypes))
    got = np.array(measure(GramColumns(columns), cut(models, base if deltas else None), WORKSPACE))
    compute = F64 if F64 in dtypes else F32
    # A delta is one subtraction in the compute dtype; the oracle starts from its result.
    vectors = [(x.to(compute) - base.to(compute) if deltas else x).to(F64).view(rows, columns) for x in models]
    stacked = torch.stack(vectors)
    products = torch.einsum("irc,jrc->ijrc", stacked, stacked)
    # A product and the sums of a group, each off by half a unit of the compute dtype; then float64.
    bound = (GROUP_ROWS + 1) * torch.finfo(compute).eps / 2 * products.abs().sum(2) * 1.01 + 40 * 2.0**-149
    assert got.shape == (len(dtypes), len(dtypes), columns)
    assert bool((np.abs(got - products.sum(2).numpy()) <= bound.numpy()).all())
    assert np.array_equal(got, got.transpose(1, 0, 2))


@pytest.mark.parametrize("columns", [3, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_tilings_give_the_same_bits(cut, fine_tunes, columns):
    rows = max(3 * CHUNK // columns, 2)
    base, models = fine_tunes(rows * columns, (BF16, BF16, F32))
    whole, *others = (measure(GramColumns(columns), cut(models, base, chunks), WORKSPACE) for chunks in (100, 1, 2))
    for other in others:
        assert np.array_equal(whole, other)


def test_order_of_the_sums(cut, fine_tunes):
    rows, columns = 2 * GROUP_ROWS + 5, 7
    _, (x,) = fine_tunes(rows * columns, (F32, F32))
    want = torch.zeros(columns, dtype=F64)
    for group in torch.split(x.view(rows, columns), GROUP_ROWS):
        total = torch.zeros(columns)
        for row in group:
            total = total + row * row
        want = want + total.to(F64)
    assert measure(GramColumns(columns), cut([x]), WORKSPACE)[0][0].tolist() == want.tolist()
