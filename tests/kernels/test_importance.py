"""arcee_fusion's importance, against the formula in plain Python, and its exact quantiles."""

from math import exp, isnan, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import ImportanceQuantiles, TakeImportant
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, combine, measure
from mergecore_kernels.torch_ops.importance import divergences, importances

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
QUARTERS = (0.25, 0.5, 0.75)
WORKSPACE = Workspace("cpu", 64 << 20)


def importance(x, base, columns, compute=F32):
    """float32 [n], and the divergences [R]."""
    rows = divergences(Tile(0, [x], base, compute), columns, WORKSPACE)
    return importances(x.to(compute), base.to(compute), rows, columns, torch.empty(len(x))), rows


def divergence(x, base):
    """KL of two rows, in Python floats."""

    def probabilities(row):
        most = max(row)
        powers = [exp(value - most) for value in row]
        total = sum(powers)
        return [power / total + 1e-8 for power in powers]

    return sum(p * log(p / q) for p, q in zip(probabilities(x), probabilities(base), strict=True))


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
@pytest.mark.parametrize("columns", [1, 2, 7, 60, 210, 420])
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0, 3e4])
def test_is_the_formula(fine_tunes, dtype, columns, scale):
    base, (x,) = fine_tunes(420, (F64, F64), 0.01)
    base, x = (base * scale).to(dtype), (x * scale).to(dtype)
    compute = F64 if dtype == F64 else F32
    got, rows = (values.tolist() for values in importance(x, base, columns, compute))
    for row in range(420 // columns):
        part = slice(row * columns, (row + 1) * columns)
        x_row, base_row = x[part].tolist(), base[part].tolist()
        kl = max(divergence(x_row, base_row), 0.0)
        # A few roundings to float32. And that of exponents, up to the largest value of the row, which changes a KL by
        # its square root times as much; float64 sums that cancel down to the KL.
        largest = max(map(abs, x_row + base_row))
        assert rows[row] == pytest.approx(kl, rel=1e-6, abs=4 * sqrt(kl) * largest * 2.0**-24 + 1e-14)
        for value, a, b in zip(got[part], x_row, base_row, strict=True):
            assert value == pytest.approx(abs(a - b) * rows[row], rel=2.0**-22)


@pytest.mark.parametrize("columns", [511, 512, 513, 5000, 40_000])
def test_long_rows(fine_tunes, columns):
    base, (x,) = fine_tunes(2 * columns, (F32, F32), 0.002)
    _, rows = importance(x, base, columns)
    for row, part in enumerate((slice(0, columns), slice(columns, None))):
        assert float(rows[row]) == pytest.approx(divergence(x[part].tolist(), base[part].tolist()), rel=5e-7)


@pytest.mark.parametrize("least", [-50.0, -1e4, -3e38, -float("inf")])
def test_elements_far_below_the_largest(least):
    """Their probabilities are 0, in one model or both; what is left of a row counts."""
    x, base = torch.tensor([0.0, 1.0, least, 0.5, least]), torch.tensor([0.0, 1.0, 0.3, least, least])
    _, rows = importance(x, base, 5)
    assert float(rows[0]) == pytest.approx(divergence(x.tolist(), base.tolist()), rel=1e-6)


def test_equal_rows_have_none(fine_tunes):
    base, _ = fine_tunes(300, (F32,))
    assert not importance(base, base, 30)[0].any()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (5, 5), (1000, 10), (6 * CHUNK, 512), (2 * CHUNK, CHUNK)])
@pytest.mark.parametrize("chunks", [2, 6])
def test_quantiles_are_those_of_a_sort(workspace, cut, fine_tunes, n, columns, chunks):
    base, (x,) = fine_tunes(n, (BF16, BF16), 0.003)
    spec = ImportanceQuantiles((0.0, *QUARTERS, 1.0), columns, n)
    got, rows = measure(spec, cut([x], base, chunks), workspace)
    values, want_rows = importance(x, base, columns)
    ordered = values.sort().values
    assert got == tuple(float(ordered[int(f * (n - 1))]) for f in (0.0, *QUARTERS, 1.0))
    assert np.array_equal(rows, want_rows.numpy())


def test_importance_is_as_large_as_it_should_be():
    """Rows that diverge more count for more, elements that moved more count for more."""
    base = torch.zeros(4, 8)
    x = base.clone()
    x[1, 0], x[2, 0], x[3, :2] = 0.5, 1.0, torch.tensor([1.0, 0.5])
    values = importance(x.view(-1), base.view(-1), 8)[0].view(4, 8)
    assert values[2, 0] > values[1, 0] > 0
    assert values[3, 0] > values[3, 1] > 0
    assert (values == 0).sum() == 32 - 4


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_takes_what_is_important(workspace, fine_tunes, dtype):
    n = 3 * CHUNK + 512
    compute = F64 if dtype == F64 else F32
    base, (x,) = fine_tunes(n, (dtype, dtype), 0.003)
    values, rows = importance(x, base, 512, compute)
    threshold = float(values.median())
    out = torch.full((n,), float("nan"), dtype=dtype)
    combine(TakeImportant(threshold, rows.numpy(), 512), Tile(0, [x], base, compute), out, workspace)
    taken = values >= threshold
    assert torch.equal(out, torch.where(taken, x, base))
    assert 0.45 < taken.float().mean() < 0.55


@pytest.mark.parametrize("columns", [1, 7, 1000, 3 * CHUNK + 5])
def test_the_choice_does_not_depend_on_tiles(workspace, cut, fine_tunes, columns):
    n = 3 * CHUNK + 5
    base, (x,) = fine_tunes(n, (BF16, BF16), 0.003)
    spec = TakeImportant(1e-3, np.random.default_rng(0).random(-(-n // columns), np.float32), columns)
    whole, parts = torch.empty(n, dtype=BF16), torch.empty(n, dtype=BF16)
    combine(spec, Tile(0, [x], base, F32), whole, workspace)
    for tile in cut([x], base, 1):
        combine(spec, tile, parts[tile.start :][: len(tile)], workspace)
    assert torch.equal(whole, parts)
    assert (whole == x).any()


def test_a_threshold_of_zero_takes_all(workspace, fine_tunes):
    base, (x,) = fine_tunes(64, (F64, F64))
    out = torch.empty(64, dtype=F64)
    combine(TakeImportant(0.0, np.zeros(8, np.float32), 8), Tile(0, [x], base, F64), out, workspace)
    assert torch.equal(out, x)


@settings(max_examples=20)
@given(
    rows=st.integers(0, 5),
    columns=st.sampled_from([1, 2, 3, 77, 1000, CHUNK - 1, CHUNK + 1]),
    dtypes=st.lists(st.sampled_from([BF16, F16, F32]), min_size=2, max_size=2),
    sizes=st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([3, 4])),
)
def test_tiles_and_inputs(cut, fine_tunes, rows, columns, dtypes, sizes):
    base, (x,) = fine_tunes(rows * columns, dtypes, 0.003)
    before = base.clone(), x.clone()
    spec = ImportanceQuantiles(QUARTERS, columns, rows * columns)
    (one, one_rows), (other, other_rows) = (measure(spec, cut([x], base, chunks), WORKSPACE) for chunks in sizes)
    assert one == other
    assert np.array_equal(one_rows, other_rows)
    assert len(one_rows) == rows
    assert torch.equal(base, before[0])
    assert torch.equal(x, before[1])


def test_nan_is_the_most_important(workspace, cut, fine_tunes):
    base, (x,) = fine_tunes(1000, (F32, F32))
    alone, _ = measure(ImportanceQuantiles((0.5,), 10, 1000), cut([x], base), workspace)
    x[5] = float("nan")
    values, rows = importance(x, base, 10)
    assert isnan(values[7])
    assert rows.isnan().sum() == 1
    (least, middle, largest), _ = measure(ImportanceQuantiles((0.0, 0.5, 1.0), 10, 1000), cut([x], base), workspace)
    assert least == values.nan_to_num(nan=1.0).min()
    assert middle == pytest.approx(alone[0], rel=0.1)
    assert largest == torch.finfo(F32).max


def test_a_nan_changes_no_other_row(fine_tunes):
    base, (x,) = fine_tunes(1000, (F32, F32), 0.5)
    base, x = base * 50, x * 50
    _, alone = importance(x, base, 10)
    x[5] = float("nan")
    _, rows = importance(x, base, 10)
    assert torch.equal(rows[1:], alone[1:])


def test_rows_must_be_whole():
    with pytest.raises(AssertionError, match="rows must be whole"):
        divergences(Tile(0, [torch.zeros(100)], torch.zeros(100), F32), 64, WORKSPACE)
