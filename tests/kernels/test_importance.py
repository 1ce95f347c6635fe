"""arcee_fusion's importance, against the formula in plain Python, and its exact quantiles."""

from math import exp, isnan, log

import pytest
import torch

from mergecore_kernels.operations import ImportanceQuantiles, TakeImportant
from mergecore_kernels.torch_ops import CHUNK, Tile, combine, measure
from mergecore_kernels.torch_ops.importance import importance

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
QUARTERS = (0.25, 0.5, 0.75)


def divergence(x, base):
    """KL of two rows, in Python floats."""

    def probabilities(row):
        powers = [exp(value - max(row)) for value in row]
        return [power / sum(powers) + 1e-8 for power in powers]

    return sum(p * log(p / q) for p, q in zip(probabilities(x), probabilities(base), strict=True))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("columns", [1, 2, 7, 60, 210])
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_is_the_formula(fine_tunes, dtype, columns, scale):
    base, (x,) = fine_tunes(420, (F32, F32), 0.01)
    base, x = (base * scale).to(dtype), (x * scale).to(dtype)
    got = importance(x, base, columns).tolist()
    for row in range(420 // columns):
        part = slice(row * columns, (row + 1) * columns)
        x_row, base_row = x[part].tolist(), base[part].tolist()
        kl = max(divergence(x_row, base_row), 0.0)
        for value, a, b in zip(got[part], x_row, base_row, strict=True):
            # float64 sums of terms that cancel down to kl, then two roundings to float32.
            assert value == pytest.approx(abs(a - b) * kl, rel=2.0**-22, abs=abs(a - b) * 1e-14)


def test_equal_rows_have_none(fine_tunes):
    base, _ = fine_tunes(300, (F32,))
    assert not importance(base, base, 30).any()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (5, 5), (1000, 10), (6 * CHUNK, 512), (2 * CHUNK, CHUNK)])
@pytest.mark.parametrize("chunks", [2, 6])
def test_quantiles_are_those_of_a_sort(workspace, cut, fine_tunes, n, columns, chunks):
    base, (x,) = fine_tunes(n, (BF16, BF16), 0.003)
    got = measure(ImportanceQuantiles((0.0, *QUARTERS, 1.0), columns), cut([x], base, chunks), workspace)
    ordered = importance(x, base, columns).sort().values
    assert got == tuple(float(ordered[int(f * (n - 1))]) for f in (0.0, *QUARTERS, 1.0))


def test_importance_is_as_large_as_it_should_be(workspace, cut):
    """Rows that diverge more count for more, elements that moved more count for more."""
    base = torch.zeros(4, 8)
    x = base.clone()
    x[1, 0], x[2, 0], x[3, :2] = 0.5, 1.0, torch.tensor([1.0, 0.5])
    values = importance(x.view(-1), base.view(-1), 8).view(4, 8)
    assert values[2, 0] > values[1, 0] > 0
    assert values[3, 0] > values[3, 1] > 0
    assert (values == 0).sum() == 32 - 4


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_takes_what_is_important(workspace, fine_tunes, dtype):
    n = CHUNK + 512
    base, (x,) = fine_tunes(n, (dtype, dtype), 0.003)
    threshold = float(importance(x, base, 512).median())
    out = torch.full((n,), float("nan"), dtype=dtype)
    combine(TakeImportant(threshold, 512), Tile(0, [x], base, F32), out, workspace)
    taken = importance(x, base, 512) >= threshold
    assert torch.equal(out, torch.where(taken, x, base))
    assert 0.45 < taken.float().mean() < 0.55


def test_a_threshold_of_zero_takes_all(workspace, fine_tunes):
    base, (x,) = fine_tunes(64, (F64, F64))
    out = torch.empty(64, dtype=F64)
    combine(TakeImportant(0.0, 8), Tile(0, [x], base, F64), out, workspace)
    assert torch.equal(out, x)


def test_tiles_and_inputs(workspace, cut, fine_tunes):
    base, (x,) = fine_tunes(4 * CHUNK, (BF16, BF16), 0.003)
    before = base.clone(), x.clone()
    spec = ImportanceQuantiles(QUARTERS, 1024)
    results = [measure(spec, cut([x], base, chunks), workspace) for chunks in (1, 2, 4)]
    assert results[0] == results[1] == results[2]
    assert torch.equal(base, before[0])
    assert torch.equal(x, before[1])


def test_nan_is_the_most_important(workspace, cut, fine_tunes):
    base, (x,) = fine_tunes(1000, (F32, F32))
    x[5] = float("nan")
    assert isnan(importance(x, base, 10)[7])
    (largest,) = measure(ImportanceQuantiles((1.0,), 10), cut([x], base), workspace)
    assert largest == torch.finfo(F32).max


def test_rows_must_be_whole():
    with pytest.raises(AssertionError, match="rows must be whole"):
        importance(torch.zeros(100), torch.zeros(100), 64)
