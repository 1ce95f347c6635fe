"""Gram matrices: the kernel gives the bits of its torch twin."""

from math import isnan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.torch_ops.reduction_tree import LANES
from mergecore_kernels.triton_ops.gram import GROUP, shares
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, TreeSums

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
WORKSPACE = Workspace("cpu", 1 << 20, use_numpy=False)
SIZES = [0, 1, 15, 17, LANES - 1, LANES, LANES + 1, 3 * LANES + 5, CHUNK + 1]


def models(n, dtypes, base=None, seed=0, chunks=1):
    """Tiles of so many chunks, of inputs [n] and a base of the dtype `base`."""
    generator = torch.Generator().manual_seed(seed)
    compute = F64 if F64 in (*dtypes, base) else F32
    inputs = [torch.randn(n, generator=generator).to(dtype) for dtype in dtypes]
    origin = None if base is None else torch.randn(n, generator=generator).to(base)
    size = chunks * CHUNK
    return [
        Tile(at, [x[at:][:size] for x in inputs], None if origin is None else origin[at:][:size], compute)
        for at in range(0, max(n, 1), size)
    ]


def twins(jobs):
    return [torch_ops.measure(Gram(), tiles, WORKSPACE) for tiles in jobs]


@settings(max_examples=8)
@given(st.data())
def test_bits_of_the_twin(data):
    """Of batches of jobs, whose tiles may be cut anywhere."""
    dtypes = st.lists(st.sampled_from([BF16, BF16, F16, F32, *FLOAT8]), min_size=1, max_size=3)
    sizes = st.sampled_from(SIZES[:-1]) | st.integers(0, 3 * LANES)
    base = st.sampled_from([None, BF16, F32, *FLOAT8])
    job = st.builds(models, sizes, dtypes, base, st.integers(0, 99))
    jobs = data.draw(st.lists(job, min_size=1, max_size=3))
    assert triton_ops.measure_batch([(Gram(), tiles) for tiles in jobs], WORKSPACE) == twins(jobs)


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_chunks_and_tilings(n):
    jobs = [models(n, (BF16, F32), BF16, chunks=chunks) for chunks in (1, 3)]
    jobs.append(iter_only(jobs[0]))
    got = triton_ops.measure_batch([(Gram(), tiles) for tiles in jobs], WORKSPACE)
    assert got == twins(jobs[:1]) * 3


def iter_only(tiles):
    """Not a list: each iteration is a pass."""

    class Passes:
        def __iter__(self):
            return iter(tiles)

    return Passes()


def test_more_chunks_than_lanes_are_added_in_order():
    """With partial sums of our own, as such a tensor would take minutes."""
    chunks = LANES + 70
    sums = TreeSums(WORKSPACE)
    tile = Tile(0, [torch.empty(0)], None, F32)
    values = torch.randn(chunks, 2, GROUPS, dtype=F64, generator=torch.Generator().manual_seed(0))

    class Long(Tile):
        def __len__(self):
            return chunks * CHUNK

    sums.partials([0], [Long(0, tile.inputs, None, F32)], 2).copy_(values.flatten())
    per_chunk = torch_ops.reduction_tree.adjacent_pair_tree(values)  # [chunks, 2]
    lanes = torch.zeros(2, LANES, dtype=F64)
    for chunk, both in enumerate(per_chunk):
        lanes[:, chunk % LANES] += both
    assert torch.equal(sums.totals({0: 2}), torch_ops.reduction_tree.adjacent_pair_tree(lanes))


@pytest.mark.parametrize("m", range(1, 25))
def test_each_pair_is_in_one_share(m):
    pairs = [(share.inputs[i], share.inputs[j]) for share in shares(m) for i, j in share.pairs]
    assert sorted(pairs) == [(i, j) for i in range(m) for j in range(i, m)]
    assert all(len(share.inputs) <= GROUP for share in shares(m))


@pytest.mark.parametrize("m", [5, GROUP + 3])
def test_many_models(m):
    tiles = models(700, (BF16,) * m, BF16)
    assert triton_ops.measure(Gram(), tiles, WORKSPACE) == torch_ops.measure(Gram(), tiles, WORKSPACE)


def test_unaligned_tensors():
    whole = models(3 * LANES + 9, (BF16, BF16), BF16)
    tiles = [Tile(0, [x[1:] for x in tile.inputs], tile.base[1:], F32) for tile in whole]
    assert triton_ops.measure(Gram(), tiles, WORKSPACE) == torch_ops.measure(Gram(), tiles, WORKSPACE)


def test_float64_is_done_by_the_twin():
    tiles = models(100, (F64, BF16), F32)
    assert triton_ops.measure(Gram(), iter_only(tiles), WORKSPACE) == torch_ops.measure(Gram(), tiles, WORKSPACE)


def test_nan_and_inf_spread():
    tiles = models(LANES + 30, (F32, F32, F32))
    tiles[0].inputs[0][7] = float("nan")
    tiles[0].inputs[1][LANES + 20] = float("inf")
    (aa, ab, ac), (_, bb, bc), (_, _, cc) = triton_ops.measure(Gram(), tiles, WORKSPACE)
    assert all(map(isnan, (aa, ab, ac)))
    assert bb == float("inf")
    assert abs(bc) == float("inf")
    assert cc == torch_ops.measure(Gram(), tiles, WORKSPACE)[2][2]


def test_no_tiles():
    assert triton_ops.measure_batch([(Gram(), []), (Gram(), models(0, (F32,)))], WORKSPACE) == [[], [[0.0]]]
