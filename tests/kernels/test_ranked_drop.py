"""DELLA's mask, against ranks counted one by one."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import (
    HASH_RANGE,
    Consensus,
    Drop,
    Key,
    MagnitudeSums,
    RankedDrop,
    Trim,
    row_length,
    whole_rows,
)
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, combine, measure
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.ranked_drop import keep_thresholds

KEY = Key.of("drop", 5, "model.layers.3.mlp.up_proj.weight", 2)
F32, F64 = torch.float32, torch.float64
INFINITY = float("inf")


def mask_of(columns, density=0.6, epsilon=0.15):
    return RankedDrop(density, epsilon, columns, KEY)


def probabilities(delta, mask):
    """[n] exact, from the mean rank among equals, counted from 1."""
    magnitude = delta.abs().to(F32).nan_to_num(nan=INFINITY, posinf=INFINITY).view(-1, mask.columns)
    density, epsilon = Fraction(mask.density), Fraction(mask.epsilon)
    result = []
    for row in magnitude.double().tolist():
        for value in row:
            smaller, equal = sum(v < value for v in row), sum(v == value for v in row)
            rank = smaller + Fraction(1 + equal, 2)
            spread = (rank - 1) / (mask.columns - 1) if mask.columns > 1 else Fraction(1, 2)
            result.append(density - epsilon + spread * 2 * epsilon)
    return result


SHAPES = {
    "normal": torch.randn,
    "ties": lambda n: torch.randint(-3, 4, (n,)).float(),
    "zeros": torch.zeros,
    "nonfinite": lambda n: torch.tensor([1.0, -1.0, float("nan"), -INFINITY])[torch.randint(0, 4, (n,))],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 30, 210])
def test_probabilities_follow_the_mean_rank(workspace, shape, columns):
    torch.manual_seed(1)
    delta, mask = SHAPES[shape](210), mask_of(columns)
    want = probabilities(delta, mask)
    got = keep_thresholds(delta, mask, workspace).tolist()
    # One float64 product and sum of numbers below 2³², then a rounding to an integer.
    assert all(abs(t - p * HASH_RANGE) <= 0.5 + 2.0**-19 for t, p in zip(got, want, strict=True))
    for at in range(0, 210, columns):
        assert sum(got[at : at + columns]) == pytest.approx(mask.density * columns * HASH_RANGE, abs=columns)


@settings(max_examples=50)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]) | st.floats(width=32), min_size=1, max_size=24),
    density=st.floats(0.2, 0.8),
    epsilon=st.floats(0.0, 0.2),
)
def test_any_row(values, density, epsilon):
    delta, mask = torch.tensor(values), mask_of(len(values), density, epsilon)
    want = probabilities(delta, mask)
    got = keep_thresholds(delta, mask, Workspace("cpu", 0)).tolist()
    assert all(abs(t - p * HASH_RANGE) <= 0.5 + 2.0**-19 for t, p in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("columns", [1024, 3 * CHUNK, 12345, 7])
@pytest.mark.parametrize("start", [0, 3 * CHUNK, 1 << 32, (1 << 34) + CHUNK])
def test_keeps_what_the_hash_says(workspace, oracle_hash, dtype, columns, start):
    """The rows begin anywhere; some of those about 2^32 lie on both sides of it, where the keys change."""
    n = max(3 * CHUNK // columns, 1) * columns
    start -= start % columns
    generator = torch.Generator().manual_seed(2)
    delta = torch.randn(n, generator=generator, dtype=F64).mul(50).round().to(dtype)
    mask = mask_of(columns)
    kept = oracle_hash(KEY, np.arange(start, start + n)) < keep_thresholds(delta, mask, workspace).numpy()
    want = torch.where(torch.from_numpy(kept), delta, torch.zeros_like(delta))
    apply_mask(delta, mask, start, workspace)
    assert torch.equal(delta, want)


def test_runs_of_rows_give_the_same(workspace):
    torch.manual_seed(0)
    delta, mask = torch.randn(8 * CHUNK).mul_(20).round_(), mask_of(512)
    whole, parts = delta.clone(), delta.clone()
    apply_mask(whole, mask, 0, workspace)
    for at in range(0, 8 * CHUNK, 2 * CHUNK):
        apply_mask(parts[at : at + 2 * CHUNK], mask, at, workspace)
    assert torch.equal(whole, parts)


def test_the_density_is_met_and_large_magnitudes_are_favoured(workspace):
    torch.manual_seed(0)
    delta = torch.randn(16 * CHUNK)
    large = delta.abs() > delta.abs().median()
    kept = delta.clone()
    apply_mask(kept, mask_of(4096, density=0.5, epsilon=0.2), 0, workspace)
    n = delta.numel()
    # Six standard deviations of a binomial count.
    assert abs((kept != 0).sum().item() / n - 0.5) < 6 * 0.5 / n**0.5
    assert (kept != 0)[large].float().mean().item() == pytest.approx(0.6, abs=6 * 0.5 / (n / 2) ** 0.5)
    assert (kept != 0)[~large].float().mean().item() == pytest.approx(0.4, abs=6 * 0.5 / (n / 2) ** 0.5)


def test_a_dropped_nan_is_gone(workspace):
    delta = torch.full((CHUNK,), float("nan"))
    apply_mask(delta, mask_of(64, density=0.5), 0, workspace)
    assert 0.4 < (delta == 0).float().mean().item() < 0.6
    assert not delta[delta == 0].signbit().any()


def test_an_empty_tensor(workspace):
    delta = torch.empty(0)
    apply_mask(delta, mask_of(64), 0, workspace)
    assert delta.numel() == 0


def test_rows_must_be_whole(workspace):
    with pytest.raises(AssertionError, match="rows must be whole"):
        apply_mask(torch.zeros(100), mask_of(64), 0, workspace)


@settings(max_examples=12)
@given(columns=st.sampled_from([1, 3, 1000, 4096, 12345, CHUNK + 1, 2 * CHUNK + 7]), chunks=st.integers(1, 5))
def test_sums_of_magnitudes_do_not_depend_on_tiles(fine_tunes, cut, columns, chunks):
    base, models = fine_tunes(whole_rows(3 * CHUNK, columns), (torch.bfloat16,) * 3)
    masks = (mask_of(columns), None)
    got = measure(MagnitudeSums(masks), cut(models, base, chunks), Workspace("cpu", 0))
    assert got == measure(MagnitudeSums(masks), cut(models, base, 100), Workspace("cpu", 0, use_numpy=False))
    kept = (models[0].float() - base.float()).abs()
    apply_mask(kept, masks[0], 0, Workspace("cpu", 0))
    assert got[0][1] == pytest.approx(kept.double().sum().item(), rel=1e-6)
    assert got[1][0] == got[1][1]


@settings(max_examples=12)
@given(columns=st.sampled_from([1, 3, 1000, 4096, 12345, CHUNK + 1]), rows=st.integers(1, 70), elect=st.booleans())
def test_a_consensus_does_not_depend_on_tiles(fine_tunes, columns, rows, elect):
    """Beside masks of other kinds, and where the keys of the hashes change."""
    n, start = whole_rows(2 * CHUNK, columns), (1 << 32) // columns * columns
    base, models = fine_tunes(n, (torch.bfloat16,) * 4)
    masks = (mask_of(columns), Drop.keeping(0.5, Key("b")), Trim(0.001953125, 1 << 31, Key("c")))
    spec = Consensus((0.5, 0.3, 0.2), masks, (1.0, 1.2, 1.0), elect, True, 1.0)
    assert row_length(spec) == columns

    def merged(size, use_numpy):
        out = torch.full((n,), torch.nan)
        for at in range(0, n, size):
            part = Tile(start, models, base, F32).part(at, min(at + size, n))
            combine(spec, part, out[at : at + size], Workspace("cpu", 0, use_numpy=use_numpy))
        return out

    assert torch.equal(merged(max(rows, 2000 // columns) * columns, True), merged(n, False))
