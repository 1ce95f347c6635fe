"""DELLA's mask gives the bits of its torch twin, written out and as a part of what masks deltas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Consensus, Drop, Key, MagnitudeSums, RankedDrop, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.ranked_drop import keep_by_rank
from mergecore_kernels.triton_ops import ranked_drop
from mergecore_kernels.triton_ops.ranked_drop import kept_batch

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEYS = [Key.of("drop", 3, "model.layers.0.mlp.up_proj.weight", model) for model in range(4)]
BORDER = 1 << 32


def mask_of(columns, model=0, density=0.6, epsilon=0.2):
    return RankedDrop(density, epsilon, columns, KEYS[model])


def tensors(n, m, dtype=F32, seed=0):
    """Base and models, whose deltas are multiples of 1/4: many are equal."""
    generator = torch.Generator().manual_seed(seed)
    base, *deltas = (torch.randint(-8, 9, (n,), generator=generator) / 4 for _ in range(m + 1))
    return base.to(dtype), [(base + delta).to(dtype) for delta in deltas]


def check_bytes(jobs):
    got = kept_batch(jobs, Workspace("cpu", 0))
    for (mask, tile), bytes_ in zip(jobs, got, strict=True):
        want = torch.empty(len(tile), dtype=torch.uint8)
        delta = tile.inputs[0].to(F32) - tile.base.to(F32)
        keep_by_rank(delta, mask, tile.start, want, Workspace("cpu", 0))
        assert torch.equal(bytes_[: len(tile)], want)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("columns", [1, 2, 3, 100, 128, 129, 1000])
def test_every_width(special_values, dtype, columns):
    base, (x,) = tensors(3 * columns, 1, dtype)
    x = special_values(x, range(0, 3 * columns, max(columns // 3, 1)))
    check_bytes([(mask_of(columns), Tile(5 * columns, [x], base, F32))])


@pytest.mark.parametrize("columns", [2048, 5000, ranked_drop.LONGEST])
def test_wide_rows(columns):
    base, (x,) = tensors(2 * columns, 1, BF16)
    check_bytes([(mask_of(columns), Tile(0, [x], base, F32))])


@pytest.fixture
def sorted_by_torch(monkeypatch):
    """As rows that are too long for a program: in the interpreter, a sort takes a tenth of a second."""
    monkeypatch.setattr(ranked_drop, "LONGEST", 0)


def test_longer_rows(sorted_by_torch):
    base, (x,) = tensors(600, 1, BF16)
    check_bytes([(mask_of(200), Tile(200, [x], base, F32))])


@pytest.mark.parametrize("columns", [7, 96])
def test_pieces(monkeypatch, sorted_by_torch, columns):
    monkeypatch.setattr(ranked_drop, "_AT_ONCE", 1000)
    base, (x,) = tensors(70 * columns, 1, BF16)
    tile = Tile(5 * columns, [x], base, F32)
    check_bytes(
        [(mask_of(columns), tile), (mask_of(columns, 1), tile.part(0, 2 * columns)), (mask_of(columns, 2), tile)]
    )


def test_across_the_border_where_keys_change():
    columns = 100
    start = BORDER // columns * columns
    base, (x,) = tensors(300, 1)
    check_bytes([(mask_of(columns), Tile(at, [x], base, F32)) for at in (start, start - 200, start + columns)])


@settings(max_examples=8)
@given(data=st.data())
def test_any_batch(data):
    jobs = []
    for _ in range(data.draw(st.integers(0, 3))):
        columns = data.draw(st.integers(1, 140))
        values = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf")]) | st.floats(-1e3, 1e3, width=16)
        x = torch.tensor(data.draw(st.lists(values, min_size=columns, max_size=columns)))
        rows = data.draw(st.integers(0, 2))
        x = x.repeat(rows).to(data.draw(st.sampled_from([BF16, F16, F32])))
        density = data.draw(st.floats(0.0, 1.0))
        epsilon = data.draw(st.floats(-1.0, 1.0)) * min(density, 1 - density)
        tile = Tile(columns * data.draw(st.integers(0, 1 << 33)), [x], torch.zeros_like(x), F32)
        jobs.append((mask_of(columns, 0, density, epsilon), tile))
    check_bytes(jobs)


MASKS = {
    "ranked": (mask_of(300, 0), mask_of(300, 1, 0.3, 0.1), mask_of(300, 2)),
    "ranked, all, nothing": (mask_of(300), None, Drop.keeping(0.0, KEYS[1])),
    "with hashes": (mask_of(300), Drop.keeping(0.4, KEYS[1]), Trim(0.5, 1 << 30, KEYS[2])),
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("elect", [True, False], ids=["elected", "not elected"])
def test_in_a_consensus(sorted_by_torch, guarded, same_bits, masks, elect):
    base, models = tensors(2400, 3, BF16)
    spec = Consensus((0.5, 0.3, -0.2), masks, (1.0, 1.5, 1.2), elect, True, 0.7)
    tile = Tile(300 * 77, [guarded(x) for x in models], guarded(base), F32)
    got, want = guarded(torch.full((2400,), float("nan"))), torch.empty(2400)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
    same_bits(got, want)


def test_in_sums_of_magnitudes(sorted_by_torch, cut):
    masks = (mask_of(20), Drop.keeping(0.4, KEYS[1]), mask_of(20, 2, 0.3, 0.1))
    base, models = tensors((CHUNK // 20 + 1) * 20, 3, BF16)
    tiles = cut(models, base)
    got = triton_ops.measure(MagnitudeSums(masks), tiles, Workspace("cpu", 0))
    assert got == torch_ops.measure(MagnitudeSums(masks), tiles, Workspace("cpu", 0))


def test_float64_is_done_by_the_twin(same_bits):
    base, models = tensors(600, 2, F64)
    spec = Consensus((0.5, 0.3), (mask_of(300), mask_of(300, 1)), (1.0, 1.0), True, True, 1.0)
    tile = Tile(300, models, base, F64)
    got, want = torch.empty(600, dtype=F64), torch.empty(600, dtype=F64)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
    same_bits(got, want)
