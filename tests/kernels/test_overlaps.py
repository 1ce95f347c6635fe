"""Overlaps of active deltas: counts, and means over those that are active."""

import pytest
import torch

from mergecore_kernels.operations import OverlapCounts, OverlapMean
from mergecore_kernels.torch_ops import CHUNK, combine, measure

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
MIXES = [(BF16,) * 4, (F32,) * 4, (F64,) * 4, (BF16, F32, F16, BF16), (F32, F64, BF16, F64)]
THRESHOLD = 0.002
SCALES = (1.0, 1.02, 0.7)


def merged(spec, tiles, dtype, workspace):
    out = torch.full((sum(map(len, tiles)),), float("nan"), dtype=dtype)
    for tile in tiles:
        combine(spec, tile, out[tile.start : tile.start + len(tile)], workspace)
    return out


def exact_deltas(base, models):
    """[M, N] in float64, of differences rounded to the compute dtype: which are active depends on that rounding."""
    compute = F64 if F64 in (base.dtype, *(x.dtype for x in models)) else F32
    deltas = torch.stack([x.to(compute) - base.to(compute) for x in models])
    return deltas.to(F64), deltas.abs() > THRESHOLD


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(d)[6:] for d in mix))
@pytest.mark.parametrize("n", [0, 1, 5000, 2 * CHUNK + 17])
def test_counts_are_exact(workspace, cut, fine_tunes, dtypes, n):
    base, models = fine_tunes(n, dtypes)
    _, active = exact_deltas(base, models)
    shared, unique = active & (active.sum(0) > 1), active & (active.sum(0) == 1)
    want = list(zip(shared.sum(1).tolist(), unique.sum(1).tolist(), strict=True))
    for chunks in (1, 3):
        assert measure(OverlapCounts(THRESHOLD), cut(models, base, chunks), workspace) == want


def test_one_model_alone_shares_nothing(workspace, cut):
    tiles = cut([torch.tensor([0.0, 1.0, -1.0, 0.5, float("nan"), float("inf")])], torch.zeros(6))
    assert measure(OverlapCounts(0.5), tiles, workspace) == [(0, 3)]


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(d)[6:] for d in mix))
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), SCALES], ids=["plain", "scaled"])
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_close_to_float64(workspace, cut, fine_tunes, dtypes, scales, n):
    base, models = fine_tunes(n, dtypes)
    deltas, active = exact_deltas(base, models)
    count = active.sum(0)
    factors = torch.tensor(scales, dtype=F64)[:, None]
    change = torch.where(count == 1, (active * deltas * factors).sum(0), (active * deltas).sum(0) / count.clamp(min=1))
    tiles = cut(models, base)
    got = merged(OverlapMean(THRESHOLD, scales), tiles, F64, workspace)
    # Two sums, a product or quotient, and the addition of the base.
    bound = torch.finfo(tiles[0].compute).eps * (base.to(F64).abs() + 4 * deltas.abs().sum(0))
    assert ((got - base.to(F64) - change).abs() <= bound).all()


def test_by_hand(workspace, cut):
    models = torch.tensor([[3.0, 0.0, 4.0, 1.0], [6.0, 0.0, 0.0, 1.0], [0.0, 8.0, 0.0, 4.0]])
    got = merged(OverlapMean(0.5, (2.0, 1.0, 0.5)), cut(list(models), torch.zeros(4)), F32, workspace)
    assert got.tolist() == [4.5, 4.0, 8.0, 2.0]


def test_tilings_give_the_same_bits_and_leave_the_inputs_alone(workspace, cut, fine_tunes):
    base, models = fine_tunes(5 * CHUNK + 1234, (BF16, BF16, F32, F16))
    before = [x.clone() for x in (base, *models)]
    results = [merged(OverlapMean(THRESHOLD, SCALES), cut(models, base, c), BF16, workspace) for c in (1, 2, 6)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


def test_inactive_deltas_give_the_base(workspace, cut, fine_tunes):
    base, models = fine_tunes(1000, (BF16,) * 4)
    assert torch.equal(merged(OverlapMean(1.0, SCALES), cut(models, base), BF16, workspace), base)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_nonfinite_stays_where_it_is(workspace, cut, fine_tunes, special):
    base, models = fine_tunes(1000, (BF16,) * 4)
    models[1][500] = base[7] = special
    got = merged(OverlapMean(THRESHOLD, SCALES), cut(models, base), BF16, workspace)
    assert (~torch.isfinite(got)).nonzero().flatten().tolist() == [7, 500]
