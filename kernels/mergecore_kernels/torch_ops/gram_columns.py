"""Gram matrices of the columns of a tensor.

Rows are taken in groups of GROUP_ROWS, counted from the tensor's start. In each column the products of a group's rows
are added one after another in the compute dtype, and the groups' sums one after another in float64; both start from +0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import GramColumns
from mergecore_kernels.torch_ops.gram import load_values
from mergecore_kernels.torch_ops.rectangles import rectangles
from mergecore_kernels.torch_ops.tile import PIECE, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

GROUP_ROWS = 32


def gram_columns(tiles: Tiles, spec: GramColumns, workspace: Workspace) -> list[list[NDArray[np.float64]]]:
    """[M, M] symmetric, of arrays [C]. Products are rounded to the compute dtype."""
    sums: dict[tuple[int, int], ColumnSums] = {}
    count = 0
    for tile in tiles:
        if not sums:
            count = len(tile.inputs)
            pairs = [(i, j) for i in range(count) for j in range(i, count)]
            sums = {pair: ColumnSums(spec.columns, tile.compute, workspace.device) for pair in pairs}
        for piece in tile.pieces(PIECE):
            values = load_values(piece, workspace)
            product = workspace.take("term", len(piece), piece.compute)
            for (i, j), of_pair in sums.items():
                of_pair.add(torch.mul(values[i], values[j], out=product), piece.start)
    totals = {pair: of_pair.totals() for pair, of_pair in sums.items()}
    return [[totals[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]


class ColumnSums:
    """The sums of the columns of a matrix whose elements come run by run."""

    def __init__(self, columns: int, compute: torch.dtype, device: torch.device) -> None:
        self._columns = columns
        self._group = torch.zeros(columns, dtype=compute, device=device)  # of the group that has begun
        self._totals = torch.zeros(columns, dtype=torch.float64, device=device)  # of the groups before it

    def add(self, values: Tensor, start: int) -> None:
        """[n] the elements from `start` on."""
        for part in rectangles(start, values.numel(), self._columns):
            group = self._group[part.column : part.end_column]
            lines = values[part.at : part.end].view(part.rows, part.width)
            for row, line in enumerate(lines, part.row):
                group.add_(line)
                if row % GROUP_ROWS == GROUP_ROWS - 1:
                    self._totals[part.column : part.end_column] += group
                    group.zero_()

    def totals(self) -> NDArray[np.float64]:
        """[C] the sums of all that was added."""
        totals: NDArray[np.float64] = (self._totals + self._group).cpu().numpy()
        return totals
