"""A tensor that is put together from others, which follow one another in it: experts stacked in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from mergecore.checkpoint.dtypes import Dtype, Shaped, promote
from mergecore.checkpoint.safetensors_file import TensorRef


@dataclass(frozen=True, slots=True)
class JoinedTensors(Shaped):
    """Where the elements of a tensor lie on disk, part by part. It is read like one that lies there as a whole."""

    parts: tuple[TensorRef, ...]
    """Of equal shapes. They may lie in different files, and differ in type."""
    dtype: Dtype
    """That the elements are read as, which holds those of all parts exactly."""
    shape: tuple[int, ...]
    first: int = 0
    """Which of its parts `parts` begins with: not 0 where only some are known."""

    @classmethod
    def of(cls, parts: Sequence[TensorRef], shape: tuple[int, ...]) -> JoinedTensors:
        """shape: has as many elements as the parts together."""
        assert len({part.shape for part in parts}) == 1
        assert prod(shape) == len(parts) * parts[0].n
        return cls(tuple(parts), promote(part.dtype for part in parts), shape)

    def runs(self, start: int, stop: int) -> Iterator[tuple[TensorRef, int, int]]:
        """The elements [start, stop): parts with the first of their elements and the one after the last."""
        size = self.parts[0].n
        while start < stop:
            part = start // size
            end = min(stop, (part + 1) * size)
            yield self.parts[part - self.first], start - part * size, end - part * size
            start = end

    def within(self, start: int, stop: int) -> JoinedTensors:
        """What is needed to read the elements [start, stop), and not more."""
        size = self.parts[0].n
        first, last = start // size, -(-stop // size)
        return replace(self, parts=self.parts[first - self.first : last - self.first], first=first)


InFiles: TypeAlias = TensorRef | JoinedTensors
"""A tensor of a checkpoint."""
