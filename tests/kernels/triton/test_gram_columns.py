"""Gram matrices of columns: the kernel gives the bits of its torch twin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Gram, GramColumns, GramRows
from mergecore_kernels.torch_ops import Tile, Workspace
from mergecore_kernels.torch_ops.gram_columns import GROUP_ROWS
from mergecore_kernels.triton_ops.gram_columns import WIDTH

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
WORKSPACE = Workspace("cpu", 1 << 20, use_numpy=False)


def tiles_of(rows, columns, dtypes, base=None, size=1 << 20):
    """A matrix of normal numbers, in tiles of so many elements."""
    generator = torch.Generator().manual_seed(rows + columns)
    n = rows * columns
    inputs = [torch.randn(n, generator=generator).to(dtype) for dtype in dtypes]
    origin = None if base is None else torch.randn(n, generator=generator).to(base)
    compute = F64 if F64 in dtypes else F32
    return [
        Tile(at, [x[at:][:size] for x in inputs], None if origin is None else origin[at:][:size], compute)
        for at in range(0, max(n, 1), size)
    ]


def both(tiles, columns):
    return [np.array(ops.measure(GramColumns(columns), tiles, WORKSPACE)) for ops in (triton_ops, torch_ops)]


@settings(max_examples=12)
@given(
    rows=st.sampled_from([0, 1, GROUP_ROWS - 1, GROUP_ROWS, 2 * GROUP_ROWS + 3]),
    columns=st.sampled_from([1, 5, 16, 48, WIDTH, WIDTH + 16]),
    dtypes=st.lists(st.sampled_from([BF16, F16, F32]), min_size=1, max_size=3),
    base=st.sampled_from([None, BF16, F32]),
    size=st.sampled_from([1 << 20, 2000, 7 * WIDTH]),
)
def test_bits_of_the_twin(rows, columns, dtypes, base, size):
    np.testing.assert_array_equal(*both(tiles_of(rows, columns, dtypes, base, size), columns))


@pytest.mark.parametrize("size", [WIDTH - 3, 3 * WIDTH, 40 * WIDTH + 1])
def test_tilings_give_the_same_bits(size):
    whole, cut = (tiles_of(70, WIDTH + 1, (BF16, F32), BF16, size) for size in (1 << 20, size))
    np.testing.assert_array_equal(both(cut, WIDTH + 1)[0], both(whole, WIDTH + 1)[0])


def test_many_models():
    np.testing.assert_array_equal(*both(tiles_of(40, 16, (BF16,) * 10, BF16), 16))


def test_unaligned_tensors():
    (tile,) = tiles_of(33, WIDTH, (BF16, BF16))
    shifted = [torch.cat([x[:1], x])[1:] for x in tile.inputs]
    np.testing.assert_array_equal(*both([Tile(0, shifted, None, F32)], WIDTH))


def test_all_kinds_of_a_batch_wait_once(monkeypatch):
    waits = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(len(self)) or real(self))
    tiles = tiles_of(3, 5, (BF16, F32))
    specs = [GramColumns(5), GramRows(5), Gram(), GramColumns(3)]
    of_columns, of_rows, dots, of_three = triton_ops.measure_batch([(spec, tiles) for spec in specs], WORKSPACE)
    assert waits == [3 * (5 + 3 + 1 + 3)]
    assert [np.shape(found) for found in (of_columns, of_rows, of_three)] == [(2, 2, 5), (2, 2, 3), (2, 2, 3)]
    for sums in (of_columns, of_rows, of_three):
        np.testing.assert_allclose(np.sum(sums, axis=2), dots, rtol=1e-5)


def test_float64_is_done_by_the_twin():
    np.testing.assert_array_equal(*both(tiles_of(33, 7, (F64, BF16)), 7))


def test_no_tiles():
    assert triton_ops.measure(GramColumns(5), [], WORKSPACE) == torch_ops.measure(GramColumns(5), [], WORKSPACE) == []
