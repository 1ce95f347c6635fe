"""Reads the tensors of two models, and the differences between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.stream.reader import Files, LowRankUpdate, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype
from mergecore_kernels import torch_ops
from mergecore_kernels.torch_ops.workspace import Workspace

TILE = 1 << 22
"""Elements that are read at a time."""
_SCRATCH_BYTES = 1 << 26


class ModelReader:
    """The values of one model's tensors, with what its adapter adds to them."""

    def __init__(self, model: Checkpoint, files: Files) -> None:
        self.model = model
        self._files = files
        self._workspace = Workspace("cpu", _SCRATCH_BYTES)
        self._update: tuple[tuple[str, torch.dtype], LowRankUpdate] | None = None

    def stored(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start] elements of a tensor, in the type that it is stored in."""
        tensor = self.model.tensors[name]
        values = self._load(tensor, start, stop)
        if name not in self.model.updates:
            return values
        compute = torch.float64 if tensor.dtype is Dtype.F64 else torch.float32
        return self._updated(name, values, start, compute).to(values.dtype)

    def read(self, name: str, start: int, stop: int, compute: torch.dtype) -> Tensor:
        """The same in the type that is computed with."""
        values = self._load(self.model.tensors[name], start, stop)
        return self._updated(name, values, start, compute) if name in self.model.updates else values.to(compute)

    def tiles(self, name: str) -> Iterator[slice]:
        """The parts of a tensor to read one after the other."""
        n = self.model.tensors[name].n
        return (slice(start, min(start + TILE, n)) for start in range(0, n, TILE))

    def _updated(self, name: str, values: Tensor, start: int, compute: torch.dtype) -> Tensor:
        if self._update is None or self._update[0] != (name, compute):
            update = self.model.updates[name]
            factors = [self._load(factor, 0, factor.n) for factor in update.factors]
            self._update = (name, compute), LowRankUpdate(update, factors, compute, torch_ops, self._workspace)
        values = values.to(compute)
        self._update[1].add_to(values, start)
        return values

    def _load(self, tensor: InFiles, start: int, stop: int) -> Tensor:
        raw = torch.empty((stop - start) * tensor.dtype.size, dtype=torch.uint8)
        self._files.read_elements(tensor, start, raw_bytes(raw))
        return raw.view(torch_dtype(tensor.dtype))


def difference(model: ModelReader, base: ModelReader, name: str) -> Tensor:
    """[n] model - base, in float32, or in float64 if one of the two is stored in that."""
    stored = (reader.model.tensors[name].dtype for reader in (model, base))
    compute = torch.float64 if Dtype.F64 in stored else torch.float32
    out = torch.empty(model.model.tensors[name].n, dtype=compute)
    for part in model.tiles(name):
        values = model.read(name, part.start, part.stop, compute)
        torch.sub(values, base.read(name, part.start, part.stop, compute), out=out[part])
    return out


def differs(model: ModelReader, base: ModelReader, name: str) -> bool:
    """Whether a tensor has another shape or other values in the two models."""
    if model.model.tensors[name].shape != base.model.tensors[name].shape:
        return True
    for part in model.tiles(name):
        a, b = (reader.read(name, part.start, part.stop, torch.float64) for reader in (model, base))
        if not torch.equal(a, b):
            return True
    return False
