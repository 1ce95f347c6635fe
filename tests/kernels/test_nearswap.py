"""The move to the other model where it is near the base."""

import pytest
import torch

from mergecore_kernels.operations import NearSwap
from mergecore_kernels.torch_ops import CHUNK, combine

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
MIXES = [(BF16, BF16), (F16, F16), (F32, F32), (F64, F64), (BF16, F32), (F64, BF16)]


def merged(t, tiles, dtype, workspace):
    out = torch.full((sum(map(len, tiles)),), float("nan"), dtype=dtype)
    for tile in tiles:
        combine(NearSwap(t), tile, out[tile.start : tile.start + len(tile)], workspace)
    return out


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda mix: "-".join(str(d)[6:] for d in mix))
@pytest.mark.parametrize("t", [0.001, 0.0, -1.0, 2e-7, 1e9])
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_close_to_float64(workspace, cut, fine_tunes, dtypes, t, n):
    base, (x,) = fine_tunes(n, dtypes)
    tiles = cut([x], base)
    got = merged(t, tiles, F64, workspace)
    exact_base, exact = base.to(F64), x.to(F64)
    share = (t / (exact_base - exact).abs().clamp(min=1e-6)).clamp(0, 1)
    want = share * exact + (1 - share) * exact_base
    # A difference, a quotient, two products, 1 - α, a sum, and t and 1e-6 are rounded to the compute dtype.
    bound = 8 * torch.finfo(tiles[0].compute).eps * (exact.abs() + exact_base.abs())
    assert ((got - want).abs() <= bound).all()


def test_by_hand(workspace, cut):
    base, x = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1.25, 2.0, -3.0, 0.0])
    assert merged(0.5, cut([x], base), F32, workspace).tolist() == [1.25, 1.5, 0.5, 0.0]


def test_order_of_the_arithmetic(workspace, cut, fine_tunes):
    """Bit for bit: each step rounded, no fused ones."""
    base, (x,) = fine_tunes(CHUNK + 7, (F32, F32))
    share = (torch.full_like(x, 0.001) / (base - x).abs().clamp(min=1e-6)).clamp(0, 1)
    assert torch.equal(merged(0.001, cut([x], base), F32, workspace), share * x + (1 - share) * base)


def test_tilings_give_the_same_bits_and_leave_the_inputs_alone(workspace, cut, fine_tunes):
    base, (x,) = fine_tunes(5 * CHUNK + 1234, (BF16, F32))
    before = base.clone(), x.clone()
    results = [merged(0.001, cut([x], base, chunks), BF16, workspace) for chunks in (1, 2, 6)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(before[0], base)
    assert torch.equal(before[1], x)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_nonfinite_stays_where_it_is(workspace, cut, fine_tunes, special):
    base, (x,) = fine_tunes(1000, (BF16, BF16))
    x[500] = base[7] = special
    got = merged(0.001, cut([x], base), BF16, workspace)
    assert (~torch.isfinite(got)).nonzero().flatten().tolist() == [7, 500]
