"""Gram matrices of rows: each row is a tensor of its own, in torch and in the kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, measure
from mergecore_kernels.torch_ops.gram import gram_rows as twin
from mergecore_kernels.torch_ops.reduction_tree import LANES
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.triton_ops.gram_rows import gram_rows

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
WORKSPACE = Workspace("cpu", 1 << 20, use_numpy=False)


def matrices(rows, columns, dtypes, base=None, seed=0):
    """Inputs [R · C] of the dtypes, and a base."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows * columns, generator=generator).to(dtype) for dtype in dtypes]
    return inputs, None if base is None else torch.randn(rows * columns, generator=generator).to(base)


def cut(inputs, base, size):
    compute = F64 if F64 in [x.dtype for x in inputs] else F32
    return [
        Tile(at, [x[at:][:size] for x in inputs], None if base is None else base[at:][:size], compute)
        for at in range(0, max(len(inputs[0]), 1), size)
    ]


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, LANES + 1), (2, CHUNK), (2, 3 * CHUNK + 7), (1, 17)])
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F64, F32)])
def test_the_twin_treats_rows_as_tensors(rows, columns, dtypes):
    inputs, base = matrices(rows, columns, dtypes, BF16)
    got = twin(cut(inputs, base, 2 * CHUNK), columns, WORKSPACE)
    for row in range(rows):
        part = slice(row * columns, (row + 1) * columns)
        alone = cut([x[part] for x in inputs], base[part], CHUNK)
        assert got[row].tolist() == measure(Gram(), alone, WORKSPACE)


@pytest.mark.parametrize(("columns", "size"), [(7, 5), (5, 7), (10, 10), (3, 30), (30, 4)])
def test_rows_are_put_together_across_tiles(columns, size):
    (x,), _ = matrices(6, columns, (F32,))
    got = [(tile.start, tile.inputs[0]) for tile in row_tiles(cut([x], None, size), columns)]
    assert all(start % columns == len(part) % columns == 0 for start, part in got)
    assert torch.equal(torch.cat([part for _, part in got]), x)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(0, 3),
    columns=st.sampled_from([1, 8, 100, LANES, LANES + 16]),
    dtypes=st.lists(st.sampled_from([BF16, F16, F32]), min_size=1, max_size=3),
    base=st.sampled_from([None, BF16, F32]),
    size=st.sampled_from([700, CHUNK]),
)
def test_bits_of_the_twin(same_bits, rows, columns, dtypes, base, size):
    tiles = cut(*matrices(rows, columns, dtypes, base), size)
    same_bits(gram_rows(tiles, columns, WORKSPACE), twin(tiles, columns, WORKSPACE))


def test_many_models_and_long_rows(same_bits):
    for rows, columns, m in [(2, 40, 10), (2, CHUNK + 3, 1)]:
        tiles = cut(*matrices(rows, columns, (BF16,) * m, BF16), CHUNK)
        same_bits(gram_rows(tiles, columns, WORKSPACE), twin(tiles, columns, WORKSPACE))


def test_float64_is_done_by_the_twin(same_bits):
    tiles = cut(*matrices(3, 40, (F64, BF16)), CHUNK)
    same_bits(gram_rows(iter_once(tiles), 40, WORKSPACE), twin(tiles, 40, WORKSPACE))


def iter_once(tiles):
    """Not a list: a pass over tiles that are gone afterwards."""
    return iter(tiles)
