"""The product of two thin matrices, added to a tile: values against float64, the same bits for every tile."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergecore_kernels.torch_ops import low_rank
from mergecore_kernels.torch_ops.low_rank import add_low_rank
from mergecore_kernels.torch_ops.workspace import Workspace

WORKSPACE = Workspace("cpu", budget_bytes=1 << 20)


def factors(rows: int, columns: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A random matrix [rows · columns], and the factors [rows, rank] and [rank, columns]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows * columns,), (rows, rank), (rank, columns)]
    matrix, left, right = (torch.randn(shape, generator=generator) for shape in shapes)
    return matrix, left, right


def added(matrix: Tensor, left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    values = matrix[start:stop].clone()
    add_low_rank(values, start, left, right, WORKSPACE)
    return values


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 9), st.integers(0, 99))
def test_is_the_product(rows: int, columns: int, rank: int, seed: int) -> None:
    matrix, left, right = factors(rows, columns, rank, seed)
    expected = matrix.double() + (left.double() @ right.double()).view(-1)
    torch.testing.assert_close(added(matrix, left, right, 0, rows * columns).double(), expected, rtol=1e-5, atol=1e-5)


@given(st.data())
def test_a_tile_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 50))
    matrix, left, right = factors(rows, columns, rank=5)
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    whole = added(matrix, left, right, 0, rows * columns)
    assert torch.equal(added(matrix, left, right, start, stop), whole[start:stop])


def test_rows_longer_than_a_piece() -> None:
    columns = low_rank._PIECE + 3
    matrix, left, right = factors(3, columns, rank=2)
    expected = matrix.double() + (left.double() @ right.double()).view(-1)
    torch.testing.assert_close(added(matrix, left, right, 0, 3 * columns).double(), expected, rtol=1e-5, atol=1e-5)


def test_works_in_float64() -> None:
    matrix, left, right = (x.double() for x in factors(4, 6, rank=3))
    torch.testing.assert_close(added(matrix, left, right, 0, 24), matrix + (left @ right).view(-1), rtol=1e-14, atol=0)
