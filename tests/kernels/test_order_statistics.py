"""The k-th magnitudes, against a sort."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, measure, order_statistics
from mergecore_kernels.torch_ops.order_statistics import FEWEST, SAMPLE

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
KEYS = tuple(Key.of("trim", 7, "lm_head.weight", model) for model in range(3))
INFINITY = float("inf")
LARGEST = float(np.finfo(np.float32).max)


class Passes:
    """Tiles that count how often they are read."""

    def __init__(self, tiles: list[Tile]) -> None:
        self.tiles = tiles
        self.count = 0

    def __iter__(self) -> Iterator[Tile]:
        self.count += 1
        return iter(self.tiles)


@pytest.fixture(scope="session")
def sorted_trim(oracle_hash):
    """sorted_trim(delta, k, key) -> what KthMagnitudes should say, from a full sort by (magnitude, hash)."""

    def find(delta, k, key):
        if k == 0:
            return Trim(INFINITY, 0, key)
        if k == delta.numel():
            return None
        magnitude = delta.abs().to(F32).nan_to_num(nan=INFINITY, posinf=INFINITY).numpy()
        hashes = oracle_hash(key, np.arange(delta.numel()))
        kth = np.lexsort((hashes, -magnitude))[k - 1]
        if magnitude[kth] == INFINITY:
            return Trim(LARGEST, HASH_RANGE - 1, key)
        return Trim(float(magnitude[kth]), int(hashes[kth]) if magnitude[kth] else HASH_RANGE - 1, key)

    return find


def delta_of(x, base):
    compute = F64 if F64 in (x.dtype, base.dtype) else F32
    return x.to(compute) - base.to(compute)


def find(tiles, kept, workspace):
    return measure(KthMagnitudes(kept, KEYS[: len(kept)]), tiles, workspace)


@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, SAMPLE + 1, 3 * CHUNK + 77])
@pytest.mark.parametrize("dtypes", [(BF16,) * 4, (F32,) * 4, (F64, F64, BF16, F32), (F32, BF16, torch.float16, F32)])
def test_equals_a_sort(workspace, cut, fine_tunes, sorted_trim, n, dtypes):
    base, models = fine_tunes(n, dtypes, 0.0005)
    for kept in [(1, n, 0), (n // 2, n - 1, n // 10)]:
        want = tuple(sorted_trim(delta_of(x, base), k, key) for x, k, key in zip(models, kept, KEYS, strict=True))
        assert find(cut(models, base, 2), kept, workspace) == want


SHAPES = {
    "ties everywhere": lambda n: torch.randint(-3, 4, (n,)).float(),
    "all equal": lambda n: torch.full((n,), -0.5),
    "all zero": lambda n: torch.zeros(n),
    "mostly zero": lambda n: torch.randn(n) * (torch.rand(n) < 0.1),
    "two far values": lambda n: torch.where(torch.rand(n) < 0.5, 1e-30, 1e30),
    "rising": lambda n: torch.arange(n).float(),
    "steps": lambda n: torch.arange(n).div(CHUNK, rounding_mode="floor").float() + 1,
    "subnormal": lambda n: torch.randint(0, 1000, (n,)).int().view(F32),
    "one large": lambda n: torch.cat([torch.ones(n - 1), torch.tensor([9.0])]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget_bytes", [0, 100_000, 1 << 30])
def test_hard_distributions_with_any_budget(workspace, cut, sorted_trim, shape, budget_bytes):
    """From a budget that holds nothing to one that holds all."""
    n = SAMPLE + 20_321
    torch.manual_seed(3)
    delta = SHAPES[shape](n)
    workspace.budget_bytes = budget_bytes
    for k in (1, n // 3):
        (got,) = find(cut([delta], torch.zeros(n)), (k,), workspace)
        assert got == sorted_trim(delta, k, KEYS[0])


def test_several_ranks_of_each_delta_take_as_many_passes_as_one(workspace, cut, fine_tunes):
    """As a band between two ranks needs them."""
    base, models = fine_tunes(3 * CHUNK, (BF16,) * 3, 0.0002)
    ranks = (1000, 50_000), (10, CHUNK)
    want = sum((find(cut(models, base), kept, workspace) for kept in ranks), ())
    tiles = Passes(cut(models, base))
    assert measure(KthMagnitudes(sum(ranks, ()), KEYS[:2] * 2), tiles, workspace) == want
    assert tiles.count == 2


def test_small_budgets_take_more_passes_and_give_the_same(cut, fine_tunes):
    n = 6 * CHUNK
    base, models = fine_tunes(n, (BF16,) * 4, 0.0002)
    kept = (n // 2, n // 3, n // 50)
    results, passes = [], []
    for budget_bytes in (1 << 30, 3 * 8 * 20_000, 0):
        tiles = Passes(cut(models, base))
        results.append(find(tiles, kept, Workspace("cpu", budget_bytes)))
        passes.append(tiles.count)
    assert results[0] == results[1] == results[2]
    assert passes[0] == 2
    assert 2 <= passes[1] <= passes[2] <= 8


def test_what_fits_the_sample_takes_one_pass(cut, fine_tunes):
    base, models = fine_tunes(SAMPLE, (BF16,) * 4)
    tiles = Passes(cut(models, base))
    find(tiles, (5, SAMPLE // 2, SAMPLE - 3), Workspace("cpu", 1 << 30))
    assert tiles.count == 1


def test_nothing_kept_takes_no_pass(workspace, cut, fine_tunes):
    base, models = fine_tunes(100, (BF16,) * 3)
    tiles = Passes(cut(models, base))
    assert find(tiles, (0, 0), workspace) == (Trim(INFINITY, 0, KEYS[0]), Trim(INFINITY, 0, KEYS[1]))
    assert tiles.count == 0


def test_a_sample_that_misleads_is_noticed(workspace, cut, sorted_trim):
    """The sample takes every so many elements: give those that it looks at values that all others don't have."""
    n = 6 * CHUNK
    for sampled_high in (True, False):
        delta = torch.full((n,), 1.0)
        everything = torch.arange(n)
        # With SAMPLE members of 3 · SAMPLE elements the stride grows to 4.
        for chunk in range(n // CHUNK):
            for stride in (1, 2, 4):
                first = chunk * CHUNK + chunk * 40_503 % stride
                delta[first : (chunk + 1) * CHUNK : 4] = 2.0 if sampled_high else 0.5
        delta += everything / (4 * n)
        for k in (n // 10, n // 2, n - n // 10):
            tiles = Passes(cut([delta], torch.zeros(n)))
            (got,) = find(tiles, (k,), workspace)
            assert got == sorted_trim(delta, k, KEYS[0])


def test_tilings_give_the_same_and_inputs_stay(workspace, cut, fine_tunes):
    n = 7 * CHUNK + 5
    base, models = fine_tunes(n, (BF16, BF16, F32))
    before = [x.clone() for x in (base, *models)]
    results = [find(cut(models, base, chunks), (n // 2, n // 5), workspace) for chunks in (1, 3, 8)]
    assert results[0] == results[1] == results[2]
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


@pytest.mark.parametrize("special", [float("nan"), -float("nan"), INFINITY, -INFINITY])
def test_nonfinite_is_largest(workspace, cut, fine_tunes, sorted_trim, special):
    n = 3 * CHUNK
    base, (model,) = fine_tunes(n, (F32, F32))
    model[::1000] = special
    count = len(model[::1000])
    for k in (1, count, count + 1, n // 2):
        (got,) = find(cut([model], base), (k,), workspace)
        assert got == sorted_trim(model - base, k, KEYS[0])
        assert (got.magnitude == LARGEST) == (k <= count)


def test_equals_in_two_blocks_of_hashes(workspace, oracle_hash):
    """At 2³² elements the hashes begin anew with other keys."""
    start = (1 << 32) - 2 * CHUNK
    n = 4 * CHUNK
    tiles = [Tile(start, [torch.ones(n)], torch.zeros(n), F32)]
    hashes = np.sort(oracle_hash(KEYS[0], np.arange(start, start + n)))
    for k in (1, n // 2, n - 1):
        assert find(tiles, (k,), workspace) == (Trim(1.0, int(hashes[k - 1]), KEYS[0]),)


def test_asking_for_more_than_there_are_fails(workspace, cut, fine_tunes):
    base, models = fine_tunes(10, (F32, F32))
    with pytest.raises(ValueError, match="11-th largest of 10"):
        find(cut(models, base), (11,), workspace)


@given(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=200), st.data())
def test_members_are_selected_by_their_ranks(values, data):
    ranks = sorted(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=3)))
    found = order_statistics.select(torch.tensor(values), ranks)
    assert found == [sorted(values)[rank] for rank in ranks]


def test_empty_tensor(workspace, cut):
    assert find(cut([torch.empty(0)], torch.empty(0)), (0,), workspace) == (Trim(INFINITY, 0, KEYS[0]),)


@settings(max_examples=60)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3.5, 3e38]) | st.floats(width=32), max_size=40),
    data=st.data(),
)
def test_small_tensors(sorted_trim, cut, values, data):
    delta = torch.tensor(values or [1.0], dtype=F32)
    k = data.draw(st.integers(0, delta.numel()))
    (got,) = find(cut([delta], torch.zeros_like(delta)), (k,), Workspace("cpu", 0))
    assert got == sorted_trim(delta, k, KEYS[0])


@settings(max_examples=15)
@given(
    levels=st.integers(1, 2000),
    skew=st.floats(0.1, 8.0),
    share=st.floats(0.0, 1.0),
    capacity=st.sampled_from([FEWEST, 5000, 40_000]),
    seed=st.integers(0, 1000),
)
def test_narrowing_finds_the_kth_in_any_distribution(sorted_trim, cut, levels, skew, share, capacity, seed):
    """Quantised, skewed, drifting along the tensor."""
    n = 3 * CHUNK - 99
    generator = torch.Generator().manual_seed(seed)
    drift = torch.linspace(0.5, 1.5, n)
    delta = ((torch.rand(n, generator=generator) ** skew) * drift * levels).round() / levels
    k = max(1, round(share * (n - 1)))
    (got,) = find(cut([delta], torch.zeros(n)), (k,), Workspace("cpu", 8 * capacity))
    assert got == sorted_trim(delta, k, KEYS[0])
