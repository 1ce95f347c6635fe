"""The kernels of SCE, RAM and nearswap give the bits of their torch twins."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import (
    HASH_RANGE,
    Energies,
    Key,
    LargestVariances,
    NearSwap,
    OverlapCounts,
    OverlapMean,
    SelectiveConsensus,
    Trim,
)
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.triton_ops.launch_table import BLOCK

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEY = Key.of("select", 5, "model.layers.3.self_attn.q_proj.weight", 0)
SELECTIONS = {
    "all": None,
    "ties": Trim(0.5, 1 << 31, KEY),
    "no ties": Trim(1.0, HASH_RANGE - 1, KEY),
    "those that vary": Trim(0.0, 0, KEY),
    "nothing": Trim(inf, 0, KEY),
}
COMBINES = {
    "selective consensus": lambda m: SelectiveConsensus((0.5, 0.3, 0.0, 1.0)[:m], SELECTIONS["ties"]),
    "no selection": lambda m: SelectiveConsensus((0.5, 0.3, 0.0, 1.0)[:m], None),
    "overlap mean": lambda m: OverlapMean(0.25, (1.0, 1.7, 0.3, 2.0)[:m]),
    "overlap mean, scales of 1": lambda m: OverlapMean(0.5, (1.0,) * m),
}
MEASURES = {
    "energies": Energies(SELECTIONS["ties"]),
    "energies of all": Energies(None),
    "overlap counts": OverlapCounts(0.25),
    "overlap counts, below zero": OverlapCounts(-1.0),
}


def quarters(m, n, dtypes, seed=0):
    """The base and m models, whose deltas are multiples of 1/4: votes and variances tie often."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(-8, 9, (n,), generator=generator) / 4
    models = [base + torch.randint(-8, 9, (n,), generator=generator) / 4 for _ in range(m)]
    return base.to(dtypes[-1]), [x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(models)]


def combined(spec, tile, out_dtype, ops):
    out = torch.full((len(tile),), float("nan"), dtype=out_dtype)
    ops.combine(spec, tile, out, Workspace("cpu", 0))
    return out


def measured(jobs):
    """Both results, with floats as their bits: NaN alike."""
    got = triton_ops.measure_batch(jobs, Workspace("cpu", 0))
    want = [torch_ops.measure(spec, tiles, Workspace("cpu", 0)) for spec, tiles in jobs]
    return [[repr(value) for value in values] for values in got], [[repr(value) for value in values] for values in want]


@pytest.mark.parametrize("n", [0, 1, 15, 17, BLOCK - 1, BLOCK, BLOCK + 33])
@pytest.mark.parametrize("name", COMBINES)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_combines(guarded, same_bits, name, n, offset):
    base, models = quarters(3, n, (BF16, F32))
    tile = Tile(CHUNK, [guarded(x, offset) for x in models], guarded(base, offset), F32)
    spec, got = COMBINES[name](3), guarded(torch.zeros(n, dtype=BF16), offset)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    same_bits(got, combined(spec, tile, BF16, torch_ops))


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.1, 0.5, 3.0, -1.0])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F32, F16)], ids=str)
def test_nearswap(guarded, same_bits, special_values, t, dtypes):
    base, models = quarters(1, BLOCK + 33, dtypes)
    models = [special_values(models[0] + 0.3, range(6)).to(dtypes[0])]
    tile = Tile(0, [guarded(models[0])], guarded(special_values(base, range(4, 10))), F32)
    got = guarded(torch.zeros(len(tile)))
    triton_ops.combine(NearSwap(t), tile, got, Workspace("cpu", 0))
    same_bits(got, combined(NearSwap(t), tile, F32, torch_ops))


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_selections(same_bits, special_values, cut, selection):
    base, models = quarters(3, 3000, (F32, BF16))
    models[1] = special_values(models[1], range(0, 600, 100))
    spec, tile = SelectiveConsensus((0.5, 0.3, 0.2), selection), Tile((1 << 32) + CHUNK, models, base, F32)
    same_bits(combined(spec, tile, F32, triton_ops), combined(spec, tile, F32, torch_ops))
    got, want = measured([(Energies(selection), [tile])])
    assert got == want


@pytest.mark.parametrize("n", [0, 1, 2049, CHUNK + 7])
def test_measures(cut, n):
    base, models = quarters(2, n, (BF16,))
    got, want = measured([(spec, cut(models, base)) for spec in MEASURES.values()])
    assert got == want


def test_a_selection_is_measured_and_used(same_bits, cut):
    base, models = quarters(3, 5000, (BF16,))
    tiles, workspace = cut(models, base), Workspace("cpu", 1 << 20)
    spec = LargestVariances(0.3, KEY)
    selection = triton_ops.measure(spec, tiles, workspace)
    assert selection == torch_ops.measure(spec, tiles, workspace)
    spec = SelectiveConsensus((0.5, 0.3, 0.2), selection)
    same_bits(combined(spec, tiles[0], BF16, triton_ops), combined(spec, tiles[0], BF16, torch_ops))


@pytest.mark.parametrize("m", [1, 2, 8, 9, 17])
def test_any_number_of_models(same_bits, cut, m):
    base, models = quarters(m, BLOCK + 3, (BF16,))
    scales, tiles = tuple(1 + i / 7 for i in range(m)), cut(models, base)
    for spec in (SelectiveConsensus(scales, SELECTIONS["ties"]), OverlapMean(0.5, scales)):
        same_bits(combined(spec, tiles[0], BF16, triton_ops), combined(spec, tiles[0], BF16, torch_ops))
    got, want = measured([(spec, tiles) for spec in MEASURES.values()])
    assert got == want


@settings(max_examples=20)
@given(data=st.data())
def test_any_batch(same_bits, cut, data):
    jobs, measures = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        m, n = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 50))
        out_dtypes = st.sampled_from([BF16, F16, F32])
        dtypes = data.draw(st.lists(out_dtypes | st.sampled_from(FLOAT8), min_size=1, max_size=3))
        base, models = quarters(m, n, dtypes, data.draw(st.integers(0, 3)))
        tile = Tile(0, models, base, F32)
        out = torch.zeros(n, dtype=data.draw(out_dtypes))
        jobs.append((data.draw(st.sampled_from(list(COMBINES.values())))(m), tile, out))
        measures.append((data.draw(st.sampled_from(list(MEASURES.values()))), [tile]))
    triton_ops.combine_batch(jobs, Workspace("cpu", 0))
    for spec, tile, out in jobs:
        same_bits(out, combined(spec, tile, out.dtype, torch_ops))
    got, want = measured(measures)
    assert got == want
