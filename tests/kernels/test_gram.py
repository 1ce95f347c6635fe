"""Gram matrices."""

from math import fsum

import pytest
import torch

from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops import CHUNK, Workspace, measure
from mergecore_kernels.torch_ops.reduction_tree import ROWS, TreeSums

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("dtypes", [(BF16,) * 4, (F32,) * 4, (F64,) * 4, (F32, BF16, torch.float16, F32)])
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def test_close_to_exact(workspace, cut, fine_tunes, n, dtypes, deltas):
    base, models = fine_tunes(n, dtypes)
    got = measure(Gram(), cut(models, base if deltas else None, 2), workspace)
    compute = F64 if F64 in dtypes else F32
    # A delta is one subtraction in the compute dtype; the oracle starts from its result.
    vectors = [(x.to(compute) - base.to(compute) if deltas else x).to(F64) for x in models]
    for i in range(3):
        for j in range(i, 3):
            products = vectors[i] * vectors[j]
            # A product and ROWS sums, each off by half a unit of the compute dtype, then the float64 tree.
            bound = (ROWS + 1) * torch.finfo(compute).eps / 2 * fsum(products.abs().tolist()) + 30 * 2.0**-149
            assert abs(got[i][j] - fsum(products.tolist())) <= bound * 1.01
            assert got[i][j] == got[j][i]


def test_sums_follow_the_tree(workspace, cut, fine_tunes):
    base, models = fine_tunes(2 * CHUNK + 7, (F32,) * 3)
    got = measure(Gram(), cut(models, base, 3), workspace)
    sums = TreeSums(1, workspace)
    products = (models[0] - base) * (models[1] - base)
    for at in range(0, products.numel(), CHUNK):
        sums.add(0, products[at : at + CHUNK])
        sums.advance(CHUNK)
    assert got[0][1] == sums.totals()[0]


def test_tilings_give_the_same_bits_and_leave_the_inputs_alone(workspace, cut, fine_tunes):
    base, models = fine_tunes(19 * CHUNK + 1, (BF16, BF16, F32))
    before = [x.clone() for x in (base, *models)]
    results = [measure(Gram(), cut(models, base, chunks), workspace) for chunks in (1, 2, 7, 20)]
    assert all(result == results[0] for result in results)
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


def test_numpy_and_torch_give_the_same_bits(cut, fine_tunes):
    _, models = fine_tunes(3 * CHUNK + 11, (BF16, BF16, F32))
    first, second = (measure(Gram(), cut(models), Workspace("cpu", 0, use_numpy=use)) for use in (True, False))
    assert first == second


def test_nan_spreads(workspace, cut, fine_tunes):
    _, models = fine_tunes(100, (F32, F32, F32))
    models[0][7] = float("nan")
    (aa, ab), (_, bb) = measure(Gram(), cut(models), workspace)
    assert aa != aa
    assert ab != ab
    assert bb == bb
