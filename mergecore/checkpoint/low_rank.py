"""A change to a tensor that is given as the product of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass

from mergecore.checkpoint.safetensors_file import TensorRef


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale · up · down, to be added to a matrix. A vector counts as a matrix of one column.

    Source: Hu et al. 2021, arXiv:2106.09685 (LoRA).
    """

    up: TensorRef
    """[R, rank]: LoRA's B."""
    down: TensorRef | None
    """[rank, C]: LoRA's A; None for a matrix of ones, which makes a vector of `up`."""
    scale: float
    """alpha / rank, or what the adapter says."""
    transposed: bool = False
    """Whether the matrix is stored as the transpose of that product."""

    @property
    def rank(self) -> int:
        return self.up.shape[1] if self.down is not None else 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix as it is stored: rows and columns."""
        rows = self.up.shape[0]
        columns = 1 if self.down is None else self.down.n // self.rank
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def factors(self) -> tuple[TensorRef, ...]:
        """What has to be read."""
        return (self.up,) if self.down is None else (self.up, self.down)
