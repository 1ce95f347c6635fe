"""The consensus kernel gives the bits of its torch twin."""

from functools import cache
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import HASH_RANGE, Consensus, Drop, Key, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.triton_ops.launch_table import BLOCK
from mergecore_kernels.triton_ops.masks import mask_kinds

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEYS = [Key.of("drop", 3, "model.layers.0.mlp.down_proj.weight", model) for model in range(16)]
NOTHING, EVERY = Trim(inf, 0, KEYS[0]), HASH_RANGE - 1
"""Deltas below are multiples of 1/4 in [-2, 2], so that magnitudes and votes tie often."""
MASKS = {
    "all": (None, None, None),
    "trim": (Trim(0.5, EVERY, KEYS[0]), None, Trim(0.0, 7, KEYS[2])),
    "ties": (Trim(0.5, 1 << 30, KEYS[0]), Trim(1.0, 3 << 30, KEYS[1]), Trim(0.25, EVERY, KEYS[2])),
    "band": (Trim(0.25, 1 << 30, KEYS[0], 1.5, 1 << 31), Trim(0.5, 5, KEYS[1]), Trim(0.0, EVERY, KEYS[2], 1.0, -1)),
    "drop": (Drop.keeping(0.5, KEYS[0]), Drop.keeping(1.0, KEYS[1]), Drop.keeping(0.1, KEYS[2])),
    "nothing": (NOTHING, Trim(0.5, 1 << 30, KEYS[1]), None),
    "drop all": (Drop.keeping(0.5, KEYS[0]), Drop.keeping(0.0, KEYS[1]), None),
    "families mixed": (Drop.keeping(0.5, KEYS[0]), Trim(0.5, 1 << 30, KEYS[1]), None),
}


@cache
def tensors(m, n, dtypes, seed=0):
    """The base and m models, whose deltas are multiples of 1/4. Not to be changed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype):
        return (torch.randint(-8, 9, (n,), generator=generator) / 4).to(dtype)

    base = draw(F32)
    models = [(base + draw(F32)).to(dtypes[i % len(dtypes)]) for i in range(m)]
    return base.to(dtypes[-1]), models


def spec_of(masks, elect=True, normalize=True, scale=1.0):
    m = len(masks)
    weights = [0.5, 0.3, -0.2, 1.0, 0.7][:m] + [0.1] * (m - 5)
    return Consensus(tuple(weights), tuple(masks), tuple(1 + i / 3 for i in range(m)), elect, normalize, scale)


def twin(spec, tile, out_dtype):
    want = torch.full((len(tile),), float("nan"), dtype=out_dtype)
    torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
    return want


@pytest.mark.parametrize("normalize", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("elect", [True, False], ids=["elected", "not elected"])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_every_kind_of_mask(same_bits, masks, elect, normalize):
    base, models = tensors(3, BLOCK + 100, (BF16, F32))
    spec, tile = spec_of(masks, elect, normalize, scale=0.7), Tile(0, models, base, F32)
    got = torch.full((len(tile),), float("nan"))
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, F32))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 33])
@pytest.mark.parametrize("name", ["ties", "drop"])
@pytest.mark.parametrize("offset", [0, 3], ids=["aligned", "unaligned"])
def test_every_length_and_nothing_beyond(guarded, same_bits, name, n, offset):
    base, models = tensors(3, n, (BF16,))
    spec = spec_of(MASKS[name])
    tile = Tile(CHUNK, [guarded(x, offset) for x in models], guarded(base, offset), F32)
    got = guarded(torch.full((n,), float("nan"), dtype=BF16), offset)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, BF16))


@pytest.mark.parametrize("m", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("elect", [True, False], ids=["elected", "not elected"])
def test_any_number_of_models(same_bits, m, elect):
    base, models = tensors(m, 1000, (BF16, F16, F32))
    spec = spec_of([Drop.keeping(0.6, key) for key in KEYS[:m]], elect)
    tile = Tile(0, models, base, F32)
    got = torch.empty(1000, dtype=F16)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, F16))


@pytest.mark.parametrize("start", [(1 << 31) - CHUNK, (1 << 32) - CHUNK, 1 << 32, (1 << 34) + 3 * CHUNK])
@pytest.mark.parametrize("name", ["ties", "drop"])
def test_far_into_a_tensor(same_bits, start, name):
    """The tile of the second start goes beyond 2^32, where the keys of the hash change."""
    n = CHUNK + 5 if start == (1 << 32) - CHUNK else 5000
    base, models = tensors(3, n, (BF16,))
    spec, tile = spec_of(MASKS[name]), Tile(start, models, base, F32)
    got = torch.empty(len(tile), dtype=BF16)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, BF16))


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("elect", [True, False], ids=["elected", "not elected"])
def test_nonfinite_and_tiny(same_bits, special_values, masks, elect):
    base, models = tensors(3, 100, (F32,))
    models = [special_values(x, range(6 * i, 100, 7 + i)) for i, x in enumerate(models)]
    base = special_values(base, [2, 13, 41, 55, 60, 62])
    spec, tile = spec_of(masks, elect), Tile(0, models, base, F32)
    got = torch.empty(100)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, F32))


def test_float64_is_done_by_the_twin(same_bits):
    base, models = tensors(3, 500, (F64, BF16))
    spec, tile = spec_of(MASKS["band"]), Tile(0, models, base, F64)
    got = torch.empty(500, dtype=F64)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, twin(spec, tile, F64))


def test_there_are_few_kinds():
    """A tensor whose k is N, or whose k-th magnitude is unique, needs no kernel of its own."""
    ties, trim, drop = Trim(1.0, 5, KEYS[0]), Trim(1.0, EVERY, KEYS[1]), Drop.keeping(0.5, KEYS[2])
    assert mask_kinds((ties, None, trim)) == ("ties",) * 3
    assert mask_kinds((None, trim, Trim(0.0, 5, KEYS[0]))) == ("trim",) * 3
    assert mask_kinds((ties, None, Trim(1.0, 5, KEYS[0], 2.0, 5))) == ("band",) * 3
    assert mask_kinds((None, drop)) == ("drop",) * 2
    assert mask_kinds((None, Drop.keeping(1.0, KEYS[0]))) == ("all",) * 2
    assert mask_kinds((trim, NOTHING)) == ("trim", "none")


magnitudes = st.sampled_from([0.0, 1e-45, 0.25, 0.5, 1.0, 1.75, 3.0, 3.4028234663852886e38, inf])
cuts = st.sampled_from([0, 1 << 29, 1 << 31, EVERY])
masks = st.one_of(
    st.none(),
    st.builds(Drop, st.sampled_from([0, 1, 1 << 30, EVERY, HASH_RANGE]), st.sampled_from(KEYS)),
    st.builds(Trim, magnitudes, cuts, st.sampled_from(KEYS)),
    st.builds(Trim, magnitudes, cuts, st.sampled_from(KEYS), magnitudes, cuts | st.just(-1)),
)
out_dtypes = st.sampled_from([BF16, F16, F32])
dtypes = out_dtypes | st.sampled_from(FLOAT8)


@st.composite
def jobs(draw):
    """Spec, tile and output dtype; half of them alike, so that they share a launch."""
    alike = draw(st.booleans())
    m = 3 if alike else draw(st.integers(1, 6))
    kinds = (BF16, BF16) if alike else tuple(draw(st.lists(dtypes, min_size=1, max_size=3)))
    n = draw(st.integers(0, 40) | st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]))
    base, models = tensors(m, n, kinds, draw(st.integers(0, 3)))
    at = draw(st.sampled_from([0, 0, 1, 8]))
    weight = st.sampled_from([1.0, 0.5, 0.1, -0.3, 0.0, -0.0, 1e-9, 3.0])
    spec = Consensus(
        weights=tuple(draw(weight) for _ in range(m)),
        masks=MASKS["ties"] if alike else tuple(draw(masks) for _ in range(m)),
        rescales=tuple(draw(st.sampled_from([1.0, 1.7])) for _ in range(m)),
        elect=alike or draw(st.booleans()),
        normalize=alike or draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.3, -2.0, 0.0])),
    )
    start = CHUNK * draw(st.sampled_from([0, 1, 77, 1 << 16]))
    return spec, Tile(start, [x[at:] for x in models], base[at:], F32), BF16 if alike else draw(out_dtypes)


@settings(max_examples=40)
@given(st.lists(jobs(), max_size=4))
def test_any_batch(same_bits, batch):
    outs = [torch.full((len(tile),), float("nan"), dtype=dtype) for _, tile, dtype in batch]
    triton_ops.combine_batch(
        [(spec, tile, out) for (spec, tile, _), out in zip(batch, outs, strict=True)], Workspace("cpu", 0)
    )
    for (spec, tile, dtype), out in zip(batch, outs, strict=True):
        same_bits(out, twin(spec, tile, dtype))
