"""The product of two thin matrices, added to a tile, has the bits of the torch twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.torch_ops import Workspace
from mergecore_kernels.torch_ops.low_rank import add_low_rank as twin
from mergecore_kernels.triton_ops.low_rank import add_low_rank


def factors(rows, columns, rank, dtype=torch.float32):
    """A random matrix [rows, columns], and the factors [rows, rank] and [rank, columns]."""
    generator = torch.Generator().manual_seed(rows + columns)
    shapes = [(rows, columns), (rows, rank), (rank, columns)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def added(function, matrix, left, right, start=0, stop=None):
    values = matrix.flatten()[start:stop].clone()
    function(values, start, left, right, Workspace("cpu", 0))
    return values


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (1, 300), (16, 128), (35, 130)])
@pytest.mark.parametrize("rank", [1, 2, 16])
def test_shapes_and_ranks(same_bits, shape, rank):
    case = factors(*shape, rank)
    same_bits(added(add_low_rank, *case), added(twin, *case))


@settings(max_examples=25)
@given(st.data())
def test_any_run(data):
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 200))
    case = factors(rows, columns, rank=3)
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    assert torch.equal(added(add_low_rank, *case, start, stop), added(twin, *case, start, stop))


def test_nothing_around_it_is_written(guarded, same_bits):
    matrix, left, right = factors(20, 150, rank=4)
    values = guarded(matrix.flatten()[170:2900], offset=1)
    add_low_rank(values, 170, left, right, Workspace("cpu", 0))
    same_bits(values, added(twin, matrix, left, right, 170, 2900))


def test_zeros_keep_their_signs(same_bits):
    left, right = torch.tensor([[-1.0, -1.0]]), torch.zeros(2, 3)
    case = (torch.tensor([[0.0, -0.0, 1.0]]), left, right)
    same_bits(added(add_low_rank, *case), added(twin, *case))


def test_float64_is_done_by_the_twin(same_bits):
    case = factors(5, 7, 3, torch.float64)
    same_bits(added(add_low_rank, *case), added(twin, *case))
