"""Gram matrices of rows: each row is a tensor of its own, in torch and in the kernel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Gram, GramRows
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.torch_ops.reduction_tree import LANES
from mergecore_kernels.torch_ops.row_tiles import row_tiles

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


def twin(tiles, columns):
    return np.array(torch_ops.measure(GramRows(columns), tiles, WORKSPACE))


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, LANES + 1), (2, CHUNK), (2, 3 * CHUNK + 7), (1, 17)])
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F64, F32)])
def test_the_twin_treats_rows_as_tensors(rows, columns, dtypes):
    inputs, base = matrices(rows, columns, dtypes, BF16)
    got = twin(cut(inputs, base, 2 * CHUNK), columns)
    assert got.shape == (2, 2, rows)
    for row in range(rows):
        part = slice(row * columns, (row + 1) * columns)
        alone = cut([x[part] for x in inputs], base[part], CHUNK)
        assert got[:, :, row].tolist() == torch_ops.measure(Gram(), alone, WORKSPACE)


@pytest.mark.parametrize(("columns", "size"), [(7, 5), (5, 7), (10, 10), (3, 30), (30, 4)])
def test_rows_are_put_together_across_tiles(columns, size):
    (x,), _ = matrices(6, columns, (F32,))
    got = [(tile.start, tile.inputs[0]) for tile in row_tiles(cut([x], None, size), columns)]
    assert all(start % columns == len(part) % columns == 0 for start, part in got)
    assert torch.equal(torch.cat([part for _, part in got]), x)


@settings(max_examples=8)
@given(
    rows=st.integers(0, 3),
    columns=st.sampled_from([1, 8, 100, LANES, LANES + 16]),
    dtypes=st.lists(st.sampled_from([BF16, F16, F32, *FLOAT8]), min_size=1, max_size=3),
    base=st.sampled_from([None, BF16, F32]),
    size=st.sampled_from([700, CHUNK]),
)
def test_bits_of_the_twin(rows, columns, dtypes, base, size):
    tiles = cut(*matrices(rows, columns, dtypes, base), size)
    np.testing.assert_array_equal(triton_ops.measure(GramRows(columns), tiles, WORKSPACE), twin(tiles, columns))


def test_many_models_and_long_rows():
    for rows, columns, m in [(2, 40, 10), (2, CHUNK + 3, 1)]:
        tiles = cut(*matrices(rows, columns, (BF16,) * m, BF16), CHUNK)
        np.testing.assert_array_equal(triton_ops.measure(GramRows(columns), tiles, WORKSPACE), twin(tiles, columns))


def test_a_batch_waits_once(monkeypatch):
    waits = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(len(self)) or real(self))
    tensors = [(cut(*matrices(rows, 40, (BF16, F32)[:m]), CHUNK), rows, m) for rows, m in [(3, 2), (5, 1), (0, 2)]]
    jobs = [(GramRows(40), tiles) for tiles, _, _ in tensors]
    got = triton_ops.measure_batch([*jobs, (GramRows(40), [])], WORKSPACE)
    assert waits == [3 * 3 + 5]
    for dots, (tiles, rows, m) in zip(got, tensors, strict=False):
        assert np.shape(dots) == (m, m, rows)
        np.testing.assert_array_equal(dots, twin(tiles, 40))
    assert got[-1] == []


def test_float64_is_done_by_the_twin():
    tiles = cut(*matrices(3, 40, (F64, BF16)), CHUNK)
    np.testing.assert_array_equal(triton_ops.measure(GramRows(40), iter(tiles), WORKSPACE), twin(tiles, 40))
