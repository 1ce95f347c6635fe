"""The tensors of a batch or of a tile in the memory of a device, and what the device finds out about their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergecore.plan.plan import OutputTensor
from mergecore.stream.accelerator import Accelerator
from mergecore.stream.findings import difference_error, nonfinite_error, nonfinite_sources
from mergecore.stream.job import Setup
from mergecore.stream.layout import Span
from mergecore.stream.reader import LowRankUpdate
from mergecore.stream.torch_dtypes import torch_dtype
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """What was read of a span: views of a frame, which hold until it is handed back."""

    span: Span
    values: list[Tensor]
    """Each [n], in the order of `OutputTensor.stored`; none where only factors were read."""
    factors: list[Tensor]
    """In the order of `OutputTensor.factors`; none where they are held elsewhere."""

    @classmethod
    def of(cls, span: Span, memory: Tensor) -> ReadSpan:
        tensor = span.job.tensor
        values = zip(span.stored, tensor.stored[: len(span.stored)], strict=True)
        factors = zip(span.factors, tensor.factors[: len(span.factors)], strict=True)
        return cls(
            span,
            [_view(memory, at, span.n, torch_dtype(one.dtype)) for at, one in values],
            [_view(memory, at, one.n, torch_dtype(one.dtype)) for at, one in factors],
        )

    def updates(self, operations: Any, workspace: Workspace) -> dict[int, LowRankUpdate]:
        """By source, what its adapter adds to it, with the operations of a backend. The factors are copied."""
        tensor, left = self.span.job.tensor, iter(self.factors)
        updates = {}
        for i, source in enumerate(tensor.sources):
            if source.update is not None:
                factors = [next(left) for _ in source.update.factors]
                updates[i] = LowRankUpdate(source.update, factors, _compute(tensor), operations, workspace)
        return updates


@dataclass(frozen=True, slots=True)
class SpanTensors:
    """What is computed with and what is written of a span: views of a frame, too."""

    span: Span
    tile: Tile
    """The whole span."""
    out: Tensor
    """[n]; empty where nothing is merged."""

    @classmethod
    def of(cls, stored: ReadSpan, memory: Tensor, updates: Mapping[int, LowRankUpdate]) -> SpanTensors:
        """updates: by source."""
        span, tensor = stored.span, stored.span.job.tensor
        places = dict(zip(updates, span.updated, strict=True))
        sources = []
        for i, source in enumerate(tensor.sources):
            values = stored.values[tensor.stored.index(source.tensor)]
            if i in updates:
                values = _view(memory, places[i], span.n, _compute(tensor)).copy_(values)
                updates[i].add_to(values, span.start)
            sources.append(values)
        base = sources.pop() if tensor.base is not None else None
        n_out = span.n if span.job.question is None else 0
        out = _view(memory, span.out, n_out, torch_dtype(tensor.dtype))
        return cls(span, Tile(span.start, sources, base, _compute(tensor)), out)

    def tiles(self, step: int) -> list[Tile]:
        """Parts of so many elements; none if the span has no elements."""
        n = self.span.n
        return [self.tile.part(first, min(first + step, n)) for first in range(0, n, step)]


class Findings:
    """What is wrong with the values that were read. The device counts; the host doesn't wait for it."""

    def __init__(self, setup: Setup, accelerator: Accelerator, operations: Any, stored: Sequence[ReadSpan]) -> None:
        self._setup, self._stored = setup, stored
        floats = [x for one in stored for x in (*one.values, *one.factors) if x.is_floating_point()]
        counts = [operations.nonfinite_counts(floats)] if floats else []
        counts += [_differing(one, source) for one in stored for source in _copies(one)]
        on_device = torch.cat(counts) if counts else torch.empty(0, dtype=torch.int64)
        self._counts = accelerator.host_memory(8 * len(on_device)).view(torch.int64)
        self._counts.copy_(on_device, non_blocking=True)
        self._counted = accelerator.computed()

    def check(self) -> None:
        """Raises RunError for values that may not be. Waits for the device, if it has not counted yet."""
        nonfinite, differing = self._known()
        for one, counts in zip(self._stored, nonfinite, strict=True):
            if any(counts) and not self._setup.allow_nonfinite:
                names = self._setup.model_names
                raise nonfinite_error(nonfinite_sources(one.span.job.tensor, counts, names))
        for (tensor, source), count in differing.items():
            if count:
                raise difference_error(tensor, tensor.inputs[source], self._setup.model_names)

    def nonfinite(self) -> list[list[int]]:
        """For each span the values in each of its sources that are NaN or infinite. Waits likewise."""
        return self._known()[0]

    def _known(self) -> tuple[list[list[int]], dict[tuple[OutputTensor, int], int]]:
        self._counted.synchronize()
        left = iter(self._counts.tolist())
        nonfinite = []
        for one in self._stored:
            tensor = one.span.job.tensor
            of_values = [next(left) if x.is_floating_point() else 0 for x in one.values]
            of_factors = (next(left) if x.is_floating_point() else 0 for x in one.factors)
            counts = [of_values[tensor.stored.index(s.tensor)] if of_values else 0 for s in tensor.sources]
            if one.factors:
                for i, source in enumerate(tensor.sources):
                    counts[i] += sum(next(of_factors) for _ in source.update.factors) if source.update else 0
            nonfinite.append(counts)
        differing = {(one.span.job.tensor, source): next(left) for one in self._stored for source in _copies(one)}
        return nonfinite, differing


def _copies(stored: ReadSpan) -> range:
    """The inputs that must be equal to the first one, as they can only be copied."""
    tensor = stored.span.job.tensor
    return range(1, len(tensor.inputs)) if tensor.method is None else range(0)


def _differing(stored: ReadSpan, source: int) -> Tensor:
    """int64 [1] the bytes in which an input differs from the first one."""
    tensor = stored.span.job.tensor
    first, other = (stored.values[tensor.stored.index(tensor.inputs[i].tensor)].view(torch.uint8) for i in (0, source))
    return torch.count_nonzero(first != other).view(1)


def _compute(tensor: OutputTensor) -> torch.dtype:
    return torch.float64 if tensor.double else torch.float32


def _view(memory: Tensor, at: int, n: int, dtype: torch.dtype) -> Tensor:
    return memory[at : at + n * dtype.itemsize].view(dtype)
