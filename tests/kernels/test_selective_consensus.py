"""Averages of the selected deltas that have the elected sign."""

import pytest
import torch

from mergecore_kernels.operations import HASH_RANGE, Key, LargestVariances, SelectiveConsensus, Trim
from mergecore_kernels.torch_ops import CHUNK, combine, measure

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
MIXES = [(BF16,) * 4, (F32,) * 4, (F64,) * 4, (BF16, F32, F16, BF16), (F32, F64, BF16, F64)]
WEIGHTS = (0.5, 0.3, 0.2)
KEY = Key.of("select", 1, "x", 0)


def merged(spec, tiles, dtype, workspace):
    out = torch.full((sum(map(len, tiles)),), float("nan"), dtype=dtype)
    for tile in tiles:
        combine(spec, tile, out[tile.start : tile.start + len(tile)], workspace)
    return out


def exact_change(deltas, weights):
    """[N] the formula in float64."""
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agreeing = torch.tensor(weights, dtype=F64)[:, None] * (deltas.sign() == elected)
    return (agreeing * deltas).sum(0) / agreeing.sum(0).clamp(min=1e-6)


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(d)[6:] for d in mix))
@pytest.mark.parametrize("weights", [WEIGHTS, (0.0, 1e-7, 1.0)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_close_to_float64(workspace, cut, fine_tunes, dtypes, weights, n):
    base, models = fine_tunes(n, dtypes)
    tiles = cut(models, base)
    compute = tiles[0].compute
    deltas = torch.stack([x.to(compute) - base.to(compute) for x in models]).to(F64)
    got = merged(SelectiveConsensus(weights, None), tiles, F64, workspace)
    # Weights are rounded; three products, four sums, a quotient; then the base is added.
    bound = torch.finfo(compute).eps * (base.to(F64).abs() + 12 * deltas.abs().sum(0))
    wrong = (got - base.to(F64) - exact_change(deltas, weights)).abs() > bound
    # Where the sum of the deltas is rounding noise, its sign is too.
    clear = deltas.sum(0).abs() > 4 * torch.finfo(compute).eps * deltas.abs().sum(0)
    assert not (wrong & clear).any()


def test_by_hand(workspace, cut):
    models = [torch.tensor([4.0, -1.0, 1.0, 0.0, 1.0]), torch.tensor([2.0, 3.0, -1.0, 0.0, -4.0])]
    got = merged(SelectiveConsensus((0.75, 0.25), None), cut(models, torch.ones(5)), F32, workspace)
    assert got.tolist() == [3.5, 3.0, -1.0, 0.0, -4.0]


def test_what_is_not_selected_is_the_base(workspace, cut, fine_tunes):
    n = 2 * CHUNK + 55
    base, models = fine_tunes(n, (F32,) * 4)
    tiles = cut(models, base)
    selection = measure(LargestVariances(0.25, KEY), tiles, workspace)
    got = merged(SelectiveConsensus(WEIGHTS, selection), tiles, F32, workspace)
    deltas = torch.stack([x - base for x in models])
    largest = torch.zeros(n, dtype=torch.bool)
    largest[deltas.var(0, correction=0).topk(n // 4).indices] = True
    every = merged(SelectiveConsensus(WEIGHTS, None), tiles, F32, workspace)
    assert (torch.where(largest, every, base) != got).sum() <= 4  # the k-th may be another by rounding
    nothing = Trim(float("inf"), 0, KEY)
    assert torch.equal(merged(SelectiveConsensus(WEIGHTS, nothing), tiles, F32, workspace), base)


@pytest.mark.parametrize("selection", [None, Trim(4e-6, HASH_RANGE // 2, KEY)], ids=["all", "selected"])
def test_tilings_give_the_same_bits_and_leave_the_inputs_alone(workspace, cut, fine_tunes, selection):
    base, models = fine_tunes(5 * CHUNK + 1234, (BF16, BF16, F32, F16))
    before = [x.clone() for x in (base, *models)]
    spec = SelectiveConsensus(WEIGHTS, selection)
    results = [merged(spec, cut(models, base, chunks), BF16, workspace) for chunks in (1, 2, 6)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_stays_where_it_is(workspace, cut, fine_tunes, special):
    base, models = fine_tunes(1000, (BF16,) * 4)
    models[1][500] = base[7] = special
    got = merged(SelectiveConsensus(WEIGHTS, None), cut(models, base), BF16, workspace)
    assert (~torch.isfinite(got)).nonzero().flatten().tolist() == [7, 500]
