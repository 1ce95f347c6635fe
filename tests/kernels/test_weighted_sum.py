"""Weighted sums and copies."""

import pytest
import torch

from mergecore_kernels.operations import Copy, WeightedColumns, WeightedRows, WeightedSum
from mergecore_kernels.torch_ops import CHUNK, combine

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]
MIXES = [(BF16,) * 4, (F16,) * 4, (F32,) * 4, (F64,) * 4, (BF16, F32, F16, BF16), (F32, F64, BF16, F64)]
WEIGHTS = (0.7, -0.4, 0.6)


def merged(spec, tiles, dtype, n, workspace):
    out = torch.full((n,), float("nan"), dtype=dtype)
    for tile in tiles:
        combine(spec, tile, out[tile.start : tile.start + len(tile)], workspace)
    return out


def error_bound(want, terms, dtype, compute):
    """One rounding to the output dtype, and for each input a product and a sum in the compute dtype, scaled by the
    inputs as the result may cancel. Deltas take a subtraction and the base an addition more."""
    out_eps = torch.finfo(dtype).eps
    compute_eps = torch.finfo(compute).eps
    # Below the normal numbers of float16 the distance is that of the smallest one.
    return out_eps * want.abs() + torch.finfo(dtype).tiny * out_eps + 2 * (len(WEIGHTS) + 2) * compute_eps * terms


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(d)[6:] for d in mix))
@pytest.mark.parametrize("out_dtype", [BF16, F16, F32, F64], ids=str)
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def test_close_to_float64(workspace, cut, fine_tunes, out_dtype, dtypes, deltas):
    n = 5000
    base, models = fine_tunes(n, dtypes, 0.01)
    tiles = cut(models, base if deltas else None, 2)
    got = merged(WeightedSum(WEIGHTS), tiles, out_dtype, n, workspace)
    exact = [x.to(F64) for x in models]
    origin = base.to(F64) if deltas else torch.zeros(n, dtype=F64)
    want = origin + sum(w * (x - origin) for w, x in zip(WEIGHTS, exact, strict=True))
    terms = origin.abs() + sum(abs(w) * (x.abs() + origin.abs()) for w, x in zip(WEIGHTS, exact, strict=True))
    assert ((got.to(F64) - want).abs() <= error_bound(want, terms, out_dtype, tiles[0].compute)).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def test_order_of_the_arithmetic(workspace, cut, fine_tunes, n, deltas):
    """Bit for bit: each product and each sum rounded to float32, in the order of the inputs, no fused steps."""
    base, models = fine_tunes(n, (F32,) * 4)
    got = merged(WeightedSum(WEIGHTS), cut(models, base if deltas else None, 2), F32, n, workspace)
    total = None
    for weight, x in zip(WEIGHTS, models, strict=True):
        product = torch.tensor(weight, dtype=F32) * (x - base if deltas else x)
        total = product if total is None else total + product
    assert torch.equal(got, base + total if deltas else total)


def test_tilings_give_the_same_bits_and_leave_the_inputs_alone(workspace, cut, fine_tunes):
    n = 5 * CHUNK + 1234
    base, models = fine_tunes(n, (BF16, BF16, F32, F16))
    before = [x.clone() for x in (base, *models)]
    results = [merged(WeightedSum(WEIGHTS), cut(models, base, c), BF16, n, workspace) for c in (1, 2, 6)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


def test_workspace_does_not_remember(workspace, cut, fine_tunes):
    base, models = fine_tunes(CHUNK + 5, (F32,) * 4)
    spec = WeightedSum(WEIGHTS)
    first = merged(spec, cut(models, base), BF16, CHUNK + 5, workspace)
    merged(spec, cut([x * float("nan") for x in models], base), BF16, CHUNK + 5, workspace)
    assert torch.equal(merged(spec, cut(models, base), BF16, CHUNK + 5, workspace), first)


def test_zero_deltas_give_the_base(workspace, cut, fine_tunes):
    base, _ = fine_tunes(1000, (BF16,))
    assert torch.equal(merged(WeightedSum(WEIGHTS), cut([base] * 3, base), BF16, 1000, workspace), base)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_nonfinite_stays_where_it_is(workspace, cut, fine_tunes, special):
    _, models = fine_tunes(1000, (BF16,) * 4)
    models[1][500] = special
    got = merged(WeightedSum(WEIGHTS), cut(models), BF16, 1000, workspace)
    assert (~torch.isfinite(got)).nonzero().flatten().tolist() == [500]


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)
def test_copy_keeps_all_bits(workspace, cut, dtype):
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    x = torch.randn(CHUNK + 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:2] = torch.tensor([0.0, -0.0])
    got = merged(Copy(), cut([x]), dtype, CHUNK + 9, workspace)
    assert torch.equal(got.view(bits), x.view(bits))


def test_copy_casts(workspace, cut):
    x = torch.randn(100, dtype=F64)
    assert torch.equal(merged(Copy(), cut([x]), F32, 100, workspace), x.to(F32))


@pytest.mark.parametrize("kind", [WeightedRows, WeightedColumns])
@pytest.mark.parametrize("columns", [1, 7, 1000, CHUNK + 1])
@pytest.mark.parametrize("dtypes", [(BF16, F32, F16), (BF16, F64, F32)], ids=["F32", "F64"])
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def test_weights_of_rows_and_columns(workspace, cut, fine_tunes, kind, columns, dtypes, deltas):
    rows = max(2 * CHUNK // columns, 2) + 1
    n = rows * columns
    base, models = fine_tunes(n, dtypes, 0.01)
    tiles = cut(models, base if deltas else None)
    length = rows if kind is WeightedRows else columns
    weights = [torch.randn(length, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    got = merged(kind(tuple(w.numpy() for w in weights), columns), tiles, F64, n, workspace)
    origin = base.to(F64).view(rows, columns) if deltas else torch.zeros(rows, columns, dtype=F64)
    shape = (rows, 1) if kind is WeightedRows else (1, columns)
    parts = [w.view(shape) * (x.to(F64).view(rows, columns) - origin) for w, x in zip(weights, models, strict=True)]
    terms = sum(part.abs() for part in parts) + origin.abs()
    bound = error_bound(terms, terms, F64, F64 if F64 in dtypes else F32)
    assert bool(((got.view(rows, columns) - origin - sum(parts)).abs() <= bound).all())
