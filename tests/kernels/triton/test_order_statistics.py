"""The radix search gives the trims of its torch twin, which are those of a sort by magnitude and hash."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.triton_ops.batches import awaited
from mergecore_kernels.triton_ops.order_statistics import (
    bytes_moved,
    kth_magnitudes,
    kth_magnitudes_batch,
    passes_made,
)
from mergecore_kernels.triton_ops.radix import AMD, INFINITY, NVIDIA, PASSES

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEYS = tuple(Key.of("trim", 7, "model.embed_tokens.weight", model) for model in range(8))
BLOCK = 256
FEW = {"NVIDIA": replace(NVIDIA, few=0), "AMD": replace(AMD, few=0)}
"""Nothing is gathered before all passes have been made, however small the tensor."""


@pytest.fixture(params=FEW)
def radix(request):
    return FEW[request.param]


def spec_of(kept):
    return KthMagnitudes(tuple(kept), KEYS[: len(kept)])


def search(jobs, radix=NVIDIA, block=BLOCK, budget_bytes=1 << 30):
    return awaited([kth_magnitudes_batch(jobs, Workspace("cpu", budget_bytes), radix, block)])[0]


def twin(spec, tiles):
    return torch_ops.measure(spec, tiles, Workspace("cpu", 1 << 30))


def agree(spec, tile, radix=NVIDIA, block=BLOCK):
    (got,) = search([(spec, [tile])], radix, block)
    assert got == twin(spec, [tile])


class Passes:
    """Tiles that aren't a list, and count how often they are drawn."""

    def __init__(self, tiles: list[Tile]) -> None:
        self.tiles = tiles
        self.count = 0

    def __iter__(self) -> Iterator[Tile]:
        self.count += 1
        return iter(self.tiles)


@pytest.mark.parametrize("layout", [NVIDIA, AMD], ids=["NVIDIA", "AMD"])
def test_buckets_cover_every_interval(layout):
    """Each pass has a bucket for every rank or hash of the interval that the one before it left."""
    ranks = [count for count in layout.counts if not count.by_hash]
    hashes = [count for count in layout.counts if count.by_hash]
    for width, counts in ((INFINITY + 1, ranks), (HASH_RANGE, hashes)):
        for count in counts:
            assert -(-width >> count.shift) << count.split <= layout.buckets
            width = 1 << count.shift
    assert ranks[-1].shift == 0
    assert layout.counts == (*ranks, *hashes)
    assert layout.room(1) == layout.room(1 << 33) == 2048
    assert layout.room(1 << 40) >= 256 << hashes[-1].shift


SHAPES = {
    "ties everywhere": lambda n: torch.randint(-3, 4, (n,)).float(),
    "all equal": lambda n: torch.full((n,), -0.5),
    "all zero": lambda n: torch.zeros(n),
    "mostly zero": lambda n: torch.randn(n) * (torch.rand(n) < 0.1),
    "normal": torch.randn,
    "two far values": lambda n: torch.where(torch.rand(n) < 0.5, 1e-30, 1e30),
    "neighbours": lambda n: (torch.randint(0, 50, (n,)).int() + 0x3F800000).view(F32),
    "same 21 bits": lambda n: (torch.randint(0, 1000, (n,)).int() + 0x3F800000).view(F32),
    "subnormal": lambda n: torch.randint(0, 1000, (n,)).int().view(F32),
    "one large": lambda n: torch.cat([torch.ones(n - 1), torch.tensor([9.0])]),
    "half NaN and Inf": lambda n: torch.tensor([1.0, -1.0, float("nan"), -float("inf")])[torch.randint(0, 4, (n,))],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_distributions(radix, oracle_hash, shape):
    n = BLOCK + 21
    torch.manual_seed(3)
    delta = SHAPES[shape](n)
    kept = (0, 1, 2, n // 3, n // 2, n - n // 5, n - 1, n)
    spec, tile = spec_of(kept), Tile(0, [delta] * 8, torch.zeros(n), F32)
    (got,) = search([(spec, [tile])], radix)
    assert got == twin(spec, [tile])
    assert got == tuple(by_sort(delta, k, key, oracle_hash) for k, key in zip(kept, KEYS, strict=True))


def test_several_ranks_of_each_delta(cut, fine_tunes):
    """As a band between two ranks needs them, beside a job with one rank."""
    base, models = fine_tunes(2 * BLOCK + 5, (BF16,) * 3, 0.0002)
    several = KthMagnitudes((200, 50, 0, 10), KEYS[:2] * 2)
    tiles = cut(models, base)
    assert search([(several, tiles), (spec_of((7, 9)), tiles)]) == [twin(several, tiles), twin(spec_of((7, 9)), tiles)]


def by_sort(delta, k, key, oracle_hash):
    """From a full sort by (magnitude, hash)."""
    if k in (0, delta.numel()):
        return None if k else Trim(float("inf"), 0, key)
    magnitude = delta.abs().nan_to_num(nan=float("inf"), posinf=float("inf")).numpy()
    hashes = oracle_hash(key, np.arange(delta.numel()))
    kth = np.lexsort((hashes, -magnitude))[k - 1]
    if np.isinf(magnitude[kth]):
        return Trim(float(np.finfo(np.float32).max), HASH_RANGE - 1, key)
    return Trim(float(magnitude[kth]), int(hashes[kth]) if magnitude[kth] else HASH_RANGE - 1, key)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 33])
@pytest.mark.parametrize("offset", [0, 3], ids=["aligned", "unaligned"])
def test_every_length_and_nothing_beyond(guarded, fine_tunes, radix, n, offset):
    base, models = fine_tunes(n, (BF16,) * 4, 0.0005)
    tile = Tile(CHUNK, [guarded(x, offset) for x in models], guarded(base, offset), F32)
    agree(spec_of((1, n // 2, n - 1)), tile, radix)


@pytest.mark.parametrize("dtypes", [(BF16,), (F16,), (F32,), (BF16, F32, F16), (F64, BF16), (F32, F64)], ids=str)
def test_dtypes(fine_tunes, radix, dtypes):
    n = 3 * BLOCK + 5
    base, models = fine_tunes(n, [dtypes[i % len(dtypes)] for i in range(4)], 0.0003)
    compute = F64 if F64 in dtypes else F32
    agree(spec_of((n // 2, n // 10, n - 3)), Tile(0, models, base, compute), radix)


def test_float64_beyond_float32(radix):
    delta = torch.tensor([1e39, -1e300, 3e38, 1e-50, 0.0, 1.0 + 1e-12, 1.0] * 40, dtype=F64)
    tile = Tile(0, [delta] * 4, torch.zeros(280, dtype=F64), F64)
    agree(spec_of((40, 81, 150, 250)), tile, radix)


@pytest.mark.parametrize("m", [1, 3, 8])
def test_any_number_of_models(fine_tunes, radix, m):
    n = 2 * BLOCK
    base, models = fine_tunes(n, (BF16,) * (m + 1), 0.0005)
    agree(spec_of([(7 * i + 1) * n // 60 for i in range(m)]), Tile(0, models, base, F32), radix)


def test_real_sizes_of_block_and_passes(fine_tunes, cut):
    """As on a GPU: one tile, of 2048 elements or more left for the last pass. And what it reads."""
    n = CHUNK + 4099
    base, models = fine_tunes(n, (BF16, BF16, F32), 0.0002)
    spec, tile = spec_of((n // 2, n // 5)), Tile(0, models, base, F32)
    workspace = Workspace("cpu", 64 << 20)
    assert kth_magnitudes([tile], spec, workspace) == twin(spec, [tile])
    passes = passes_made([tile], spec, workspace)
    ranks_and_hashes, ranks = 0b101011, 0b100011
    assert passes == (ranks_and_hashes, ranks)
    assert bytes_moved(tile, passes) == n * (4 * 2 + 3 * 4 + 4 * 2)


@pytest.mark.parametrize("n", [1, 5, BLOCK + 1])
def test_lanes_without_an_element_disturb_nothing(radix, n):
    """They hold zeros, whose number must not matter: not where there are others, nor where there are none."""
    delta = torch.ones(n)
    mixed = torch.cat([torch.zeros(n - n // 3), torch.full((n // 3,), -2.0)])
    for k in {1, n // 3, n // 3 + 1, n - 1, n}:
        agree(spec_of((k, k)), Tile(0, [delta, mixed], torch.zeros(n), F32), radix)


def test_a_small_tensor_takes_one_pass(fine_tunes):
    base, models = fine_tunes(2048, (BF16,) * 3)
    spec, tile = spec_of((5, 2000)), Tile(0, models, base, F32)
    assert passes_made([tile], spec, Workspace("cpu", 1 << 20)) == (1 << NVIDIA.gather,) * 2
    agree(spec, tile)


def test_all_passes_are_made_where_nothing_is_gathered_before(radix):
    delta = (torch.randperm(2000).int() + 0x3F800000).view(F32).repeat(2)
    spec, tile = spec_of((100,)), Tile(0, [delta], torch.zeros(4000), F32)
    pending = kth_magnitudes_batch([(spec, [tile])], Workspace("cpu", 1 << 20), radix, BLOCK)
    assert pending.values.tolist()[PASSES] == (1 << radix.over) - 1
    agree(spec, tile, radix)


@pytest.mark.parametrize("chunks", [1, 3])
def test_tiles(cut, fine_tunes, chunks):
    n = 2 * CHUNK + 77
    base, models = fine_tunes(n, (BF16,) * 3, 0.0003)
    spec, tiles = spec_of((n // 2, n // 30)), cut(models, base, chunks)
    assert search([(spec, tiles)], replace(NVIDIA, few=100), 16 * BLOCK) == [twin(spec, tiles)]


def test_tiles_that_are_drawn_are_drawn_as_often_as_needed(cut, fine_tunes):
    n = CHUNK + 77
    base, models = fine_tunes(n, (BF16,) * 3, 0.0003)
    drawn, listed = Passes(cut(models, base)), cut(models[:1], base)
    jobs = [(spec_of((n // 2, n // 30)), drawn), (spec_of((n,)), listed)]
    assert search(jobs, block=16 * BLOCK) == [twin(spec, list(tiles)) for spec, tiles in jobs]
    assert drawn.count - 1 == 4  # once by the line above


def test_nothing_kept_draws_no_tile(fine_tunes, cut):
    base, models = fine_tunes(100, (BF16,) * 3)
    tiles = Passes(cut(models, base))
    spec = spec_of((0, 0))
    assert search([(spec, tiles)]) == [tuple(Trim(float("inf"), 0, key) for key in KEYS[:2])]
    assert tiles.count == 0


@pytest.mark.parametrize("budget_bytes", [0, 3 * 40_000, 1 << 30])
def test_batches_share_launches_and_memory(radix, fine_tunes, budget_bytes):
    jobs = []
    for seed, (n, m, dtype) in enumerate([(700, 2, BF16), (5, 2, BF16), (300, 1, F32), (1, 2, BF16), (513, 3, F16)]):
        base, models = fine_tunes(n, [dtype] * (m + 1), 0.0005, seed)
        jobs.append((spec_of([max(n // (i + 2), 1) for i in range(m)]), [Tile(0, models, base, F32)]))
    jobs.insert(2, (spec_of((0,)), [Tile(0, [torch.empty(0)], torch.empty(0), F32)]))
    want = [twin(spec, tiles) for spec, tiles in jobs]
    assert search(jobs, radix, budget_bytes=budget_bytes) == want


def test_by_type(fine_tunes, cut):
    """As a merge asks for it: with lists of tiles, and with tiles that are drawn; float64 too."""
    n = 3000
    for dtype in (BF16, F64):
        base, models = fine_tunes(n, (dtype,) * 3, 0.0003)
        tiles, spec = cut(models, base), spec_of((n // 2, n // 30))
        for source in (tiles, Passes(tiles)):
            assert triton_ops.measure(spec, source, Workspace("cpu", 1 << 30)) == twin(spec, tiles)


def test_no_jobs():
    assert search([]) == []


@pytest.mark.parametrize("special", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nonfinite_is_largest(radix, fine_tunes, special):
    n = 3 * BLOCK
    base, (model,) = fine_tunes(n, (F32, F32))
    model[::50] = special
    count = len(model[::50])
    tile = Tile(0, [model] * 4, base, F32)
    agree(spec_of((1, count, count + 1, n // 2)), tile, radix)


@pytest.mark.parametrize("start", [(1 << 31) - CHUNK, (1 << 32) - CHUNK, 1 << 32, (1 << 34) + 3 * CHUNK])
def test_far_into_a_tensor(fine_tunes, start):
    """A tile that reaches over a multiple of 2³² has two blocks of hashes, with keys of their own."""
    n = CHUNK + 2 * BLOCK + 5
    delta = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(1)).float()
    tile = Tile(start, [delta, torch.ones(n)], torch.zeros(n), F32)
    agree(spec_of((n // 2, n // 3)), tile, replace(NVIDIA, few=100), 16 * BLOCK)


def test_asking_for_more_than_there_are_fails(cut, fine_tunes):
    base, models = fine_tunes(10, (F32, F32))
    for tiles in (cut(models, base), Passes(cut(models, base))):
        with pytest.raises(ValueError, match="the 11-th largest of 10 magnitudes"):
            search([(spec_of((11,)), tiles)])


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3.5, 3e38, float("nan")]) | st.floats(width=32)
dtypes = st.sampled_from([BF16, F16, F32, *FLOAT8])


@st.composite
def jobs(draw):
    """A tensor of few or of many distinct values, and what is asked of it."""
    m = draw(st.integers(1, 3))
    if draw(st.booleans()):
        models = [torch.tensor(draw(st.lists(values, min_size=40, max_size=40))) for _ in range(m)]
        n = draw(st.integers(1, 40))
    else:
        n = draw(st.sampled_from([BLOCK - 1, BLOCK, 2 * BLOCK + 1]))
        levels, seed = draw(st.integers(1, 2000)), draw(st.integers(0, 99))
        generator = torch.Generator().manual_seed(seed)
        models = [(torch.randn(n, generator=generator) * levels).round() / levels for _ in range(m)]
    kinds = [draw(dtypes) for _ in range(m)]
    kept = [draw(st.integers(0, n)) for _ in range(m)]
    start = CHUNK * draw(st.sampled_from([0, 5, 1 << 16]))
    base = torch.zeros(n, dtype=draw(dtypes))
    return spec_of(kept), [Tile(start, [x[:n].to(kind) for x, kind in zip(models, kinds, strict=True)], base, F32)]


@settings(max_examples=25)
@given(st.lists(jobs(), min_size=1, max_size=3), st.sampled_from(list(FEW)), st.sampled_from([0, 1, 3, 60]))
def test_any_batch(batch, layout, few):
    got = search(batch, replace(FEW[layout], few=few))
    assert got == [twin(spec, tiles) for spec, tiles in batch]
