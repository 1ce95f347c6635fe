"""Sums in one fixed order, the same on every device and for every tiling.

A tensor is cut into chunks of CHUNK elements from its start, the last one filled up with zeros. A chunk is viewed as
[ROWS, LANES]. Rows are added one after another in the compute dtype, the LANES results are widened to float64 and added
by a tree of adjacent pairs. The chunks' sums are treated alike: chunk c goes to lane c mod LANES, each lane adds its
chunks in order, starting from zero, and the same tree adds the lanes, all in float64.

So a float32 accumulator sees 32 terms: the relative error of a sum of squares stays near 2e-8 for any length.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.torch_ops.tile import CHUNK, PIECE
from mergecore_kernels.torch_ops.workspace import Workspace

LANES = 2048
ROWS = CHUNK // LANES
Values = TypeVar("Values", Tensor, NDArray[np.float64])
_BATCH = 16  # chunks whose trees are evaluated together


class TreeSums:
    """`count` sums over the same elements: `add` the values for each sum, then `advance` to the elements after them.

    Each call begins at a multiple of CHUNK and takes at most PIECE elements.
    """

    def __init__(self, count: int, workspace: Workspace) -> None:
        self._workspace = workspace
        room = _BATCH + PIECE // CHUNK
        self._lanes = workspace.take("tree lanes", room * count * LANES, torch.float64).view(room, count, LANES)
        self._lanes_numpy: NDArray[np.float64] | None = None
        if workspace.use_numpy and _numpy_adds_rows_in_order():
            self._lanes_numpy = self._lanes.numpy()
        self._totals = torch.zeros(count, LANES, dtype=torch.float64, device=workspace.device)
        self._pending = 0  # chunks in _lanes
        self._done = 0  # chunks in _totals

    def add(self, index: int, values: Tensor) -> None:
        """[n] float32 or float64, for the sum `index`."""
        n = values.numel()
        if n % CHUNK:
            values = self._filled(values)
        if self._lanes_numpy is None:
            for i, rows in enumerate(values.view(-1, ROWS, LANES)):
                self._lanes[self._pending + i, index] = add_rows(rows)
            return
        with np.errstate(all="ignore"):  # overflow gives Inf, as in torch
            for i, chunk in enumerate(values.numpy().reshape(-1, ROWS, LANES)):
                self._lanes_numpy[self._pending + i, index] = np.add.reduce(chunk, axis=0)

    def add_products(self, index: int, a: Tensor, b: Tensor) -> None:
        """[n] the products a · b, each rounded, for the sum `index`."""
        if self._lanes_numpy is None or a.numel() % CHUNK or a.dtype != torch.float32 or not _einsum_rounds_products():
            self.add(index, torch.mul(a, b, out=self._workspace.take("product", a.numel(), a.dtype)))
            return
        with np.errstate(all="ignore"):
            lanes = _add_rows_of_products(a.numpy(), b.numpy())
        self._lanes_numpy[self._pending : self._pending + len(lanes), index] = lanes

    def advance(self, n: int) -> None:
        """All sums have been given their next n values."""
        self._pending += -(-n // CHUNK)
        if self._pending >= _BATCH:
            self._fold()

    def totals(self) -> list[float]:
        """[count] the sums."""
        self._fold()
        return [float(total) for total in adjacent_pair_tree(self._totals).tolist()]

    def _filled(self, values: Tensor) -> Tensor:
        n = values.numel()
        filled = self._workspace.take("tree tail", -(-n // CHUNK) * CHUNK, values.dtype)
        filled[:n] = values
        filled[n:] = 0
        return filled

    def _fold(self) -> None:
        if self._lanes_numpy is None:
            partials = adjacent_pair_tree(self._lanes[: self._pending])
        else:
            partials = torch.from_numpy(adjacent_pair_tree(self._lanes_numpy[: self._pending]))
        for partial in partials:  # [count], chunk by chunk
            self._totals[:, self._done % LANES] += partial
            self._done += 1
        self._pending = 0


def add_rows(rows: Tensor) -> Tensor:
    """[ROWS, LANES] -> [LANES], row after row."""
    total = rows[0].clone()
    for row in rows[1:]:
        total.add_(row)
    return total


def adjacent_pair_tree(values: Values) -> Values:
    """[..., a power of two] -> [...]: neighbours are added until one is left."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def _add_rows_of_products(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[chunks, LANES] in half the time that the products and their sums take one after the other."""
    lanes: NDArray[np.float32] = np.einsum("crl,crl->cl", a.reshape(-1, ROWS, LANES), b.reshape(-1, ROWS, LANES))
    return lanes


@lru_cache(maxsize=1)
def _einsum_rounds_products() -> bool:
    """Whether numpy's einsum rounds each product, and adds row after row: it could be built to do otherwise."""
    index = np.arange(PIECE, dtype=np.float32)
    a, b = 2.0 ** (index * np.float32(0.618) % 24), 2.0 ** (index * np.float32(0.755) % 24)
    a[::3] *= -1
    products = torch.from_numpy(a * b).view(-1, ROWS, LANES)
    return np.array_equal(_add_rows_of_products(a, b), torch.stack([add_rows(rows) for rows in products]).numpy())


@lru_cache(maxsize=1)
def _numpy_adds_rows_in_order() -> bool:
    """numpy documents addition one by one along all axes but the fastest. It is seen here rather than trusted."""
    spread = 2.0 ** (torch.arange(CHUNK, dtype=torch.float32) * 0.618 % 24.0)
    rows = torch.where(torch.arange(CHUNK) % 3 == 0, -spread, spread).view(ROWS, LANES)
    return bool(torch.equal(torch.from_numpy(np.add.reduce(rows.numpy(), axis=0)), add_rows(rows)))
