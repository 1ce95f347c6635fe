"""Sizes of tensors that are merged in practice."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Size:
    """A tensor of some model."""

    name: str
    shape: tuple[int, ...]
    source: str
    """The model, and what the tensor does there."""

    @property
    def n(self) -> int:
        """Elements."""
        return prod(self.shape)


SIZES = {
    size.name: size
    for size in (
        Size("small", (5, 40_961), "no model: a few chunks and a ragged end, for tests"),
        Size("q_proj", (4096, 4096), "Llama 3 8B, queries"),
        Size("down_proj", (4096, 14_336), "Llama 3 8B, second half of an MLP"),
        Size("embedding", (128_256, 4096), "Llama 3 8B, vocabulary"),
        Size("experts", (64, 2048, 2048), "64 experts of 2048 × 2048 in one tensor, as in a mixture of 7B"),
        Size("large_experts", (64, 7168, 8192), "64 experts of 7168 × 8192 in one tensor: more than 2³¹ elements"),
    )
}
"""By name."""
