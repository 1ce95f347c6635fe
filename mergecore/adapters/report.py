"""What an extracted adapter holds, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from mergecore.adapters.ranks import Rule


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor that changed."""

    name: str
    shape: tuple[int, ...]
    rank: int | None
    """Of its factors; 0 if the budget left nothing for it, None for a tensor that is held as it is."""
    exact: bool
    """Whether all singular values were computed, and not the leading ones by a sketch."""
    change: float
    """‖Δ‖, the Frobenius norm of what changed; 0 where the tensor is held as it is, and nothing was measured."""
    residual: float
    """‖Δ - product‖, of the factors as they are written."""
    energy: float
    """The share of Σ σ² that the rank keeps."""
    parameters: int
    """Numbers in the adapter."""

    @property
    def error(self) -> float:
        """The relative error ‖Δ - product‖ / ‖Δ‖."""
        return self.residual / self.change if self.change else 0.0


@dataclass(frozen=True, slots=True)
class Extraction:
    """An adapter that was extracted."""

    folder: Path
    rule: Rule
    tensors: tuple[TensorReport, ...]
    unchanged: tuple[str, ...]
    """Modules that are the same in both models."""
    n_bytes: int
    """Of the file of weights."""
    notes: tuple[str, ...]

    @property
    def matrices(self) -> list[TensorReport]:
        """The tensors that are given by factors."""
        return [tensor for tensor in self.tensors if tensor.rank is not None]

    @property
    def error(self) -> float:
        """The relative error of all matrices together."""
        return sqrt(sum(t.residual**2 for t in self.matrices) / sum(t.change**2 for t in self.matrices))

    @property
    def energy(self) -> float:
        """The share of all matrices' Σ σ² together that is kept."""
        return sum(t.energy * t.change**2 for t in self.matrices) / sum(t.change**2 for t in self.matrices)

    @property
    def parameters(self) -> int:
        """Numbers in all factors."""
        return sum(tensor.parameters for tensor in self.matrices)
