"""Reads tiles of tensors, by position, into buffers that are used again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.gathered_rows import GatheredRows, Stored
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError
from mergecore.plan.plan import OutputTensor
from mergecore.stream.gather import RowReader
from mergecore.stream.positional_io import MOST_OPEN_FILES, open_to_read, read_at
from mergecore.stream.strided import read_strided
from mergecore.stream.torch_dtypes import torch_dtype
from mergecore_kernels import torch_ops
from mergecore_kernels.operations import whole_rows
from mergecore_kernels.torch_ops.nonfinite import count_nonfinite
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace

_CONVERTED_ELEMENTS = 1 << 14
"""At a time: few, beside those of a tile."""


class Files:
    """Files kept open for reading by position. For one thread."""

    def __init__(self, most_open: int = MOST_OPEN_FILES) -> None:
        self._most_open = most_open
        self._open: dict[str, int] = {}
        self._gather = RowReader(self.read_elements)

    def read(self, path: str, offset_bytes: int, into: memoryview) -> None:
        """Fill `into` from the file. Raises CheckpointError if the file can't be read or ends too soon."""
        try:
            count = read_at(self._descriptor(path), into, offset_bytes)
        except OSError as error:
            raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error
        if count < len(into):
            raise CheckpointError.at(path, "became shorter while it was read", "is it being written again?")

    def read_elements(self, tensor: Stored, start: int, into: memoryview) -> None:
        """Fill `into` with a tensor's elements from `start` on. Raises CheckpointError likewise."""
        if isinstance(tensor, GatheredRows):
            self._gather.read(tensor, start, into)
        elif isinstance(tensor, JoinedTensors):
            self._read_joined(tensor, start, into)
        elif isinstance(tensor, InlineTensor):
            tensor.read(start, into)
        elif tensor.strides is None:
            self.read(tensor.file, tensor.offset_bytes + start * tensor.dtype.size, into)
        else:
            read_strided(tensor, tensor.strides, start, into)

    def _read_joined(self, tensor: JoinedTensors, start: int, into: memoryview) -> None:
        size = tensor.dtype.size
        for part, first, stop in tensor.runs(start, start + len(into) // size):
            of_part, into = into[: (stop - first) * size], into[(stop - first) * size :]
            if part.dtype is tensor.dtype:
                self.read_elements(part, first, of_part)
            else:
                self._read_converted(part, first, tensor.dtype, of_part)

    def _read_converted(self, tensor: TensorRef, start: int, dtype: Dtype, into: memoryview) -> None:
        """The same numbers in another type, which holds them exactly."""
        found = torch.frombuffer(into, dtype=torch_dtype(dtype))
        for first in range(0, len(found), _CONVERTED_ELEMENTS):
            block = found[first : first + _CONVERTED_ELEMENTS]
            raw = torch.empty(len(block) * tensor.dtype.size, dtype=torch.uint8)
            self.read_elements(tensor, start + first, raw_bytes(raw))
            block.copy_(raw.view(torch_dtype(tensor.dtype)))

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()

    def _descriptor(self, path: str) -> int:
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= self._most_open:
                os.close(self._open.pop(next(iter(self._open))))
            file = self._open[path] = open_to_read(path)
        return file

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class Buffers:
    """One buffer per source of a tensor, grown when a larger tile comes."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def take(self, index: int, n_bytes: int) -> Tensor:
        """[n_bytes] uint8. The bytes of the buffer's last user are still in it."""
        while len(self._buffers) <= index:
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        if self._buffers[index].numel() < n_bytes:
            self._buffers[index] = torch.empty(n_bytes, dtype=torch.uint8)
        held = self._buffers[index]
        return held if held.numel() == n_bytes else held[:n_bytes]


class TensorTiles:
    """The tiles of one output tensor's sources, from element `start` to `stop`. Each iteration is one pass.

    A tile lies in `buffers` and in the workspace, so it holds only until the next one is drawn. The first pass counts
    what isn't finite. Sources that are stored in the same place are read once.
    """

    def __init__(
        self,
        tensor: OutputTensor,
        start: int,
        stop: int,
        tile: int,
        files: Files,
        buffers: Buffers,
        workspace: Workspace,
    ) -> None:
        self.bytes_read = 0
        self._tensor = tensor
        self._start, self._stop = start, stop
        self._tile = tile
        self._files = files
        self._buffers = buffers
        self._workspace = workspace
        self._compute = torch.float64 if tensor.double else torch.float32
        self._stored = tensor.stored
        self._place = [self._stored.index(source.tensor) for source in tensor.sources]
        self._nonfinite = [0] * len(self._stored)
        self._factors_nonfinite = [0] * len(tensor.sources)
        self._counted = False
        self._updates: dict[int, LowRankUpdate] = {}

    @property
    def nonfinite(self) -> list[int]:
        """Values in each source that are NaN or infinite, as far as the first pass has come."""
        return [self._nonfinite[place] + self._factors_nonfinite[i] for i, place in enumerate(self._place)]

    def align(self, columns: int) -> None:
        """From now on make tiles of whole rows, of so many columns: as many as in a tile before, at least one."""
        self._tile = whole_rows(self._tile, columns)

    def __iter__(self) -> Iterator[Tile]:
        for start in range(self._start, self._stop, self._tile):
            stop = min(start + self._tile, self._stop)
            stored = [self._read(i, tensor, start, stop) for i, tensor in enumerate(self._stored)]
            sources = [self._source(i, stored[place], start) for i, place in enumerate(self._place)]
            base = sources.pop() if self._tensor.base is not None else None
            yield Tile(start=start, inputs=sources, base=base, compute=self._compute)
        self._counted = True

    def _read(self, index: int, tensor: Stored, start: int, stop: int) -> Tensor:
        values = self._load(tensor, start, stop, self._buffers.take(index, (stop - start) * tensor.dtype.size))
        if not self._counted and tensor.dtype.is_floating:
            self._nonfinite[index] += count_nonfinite(values)
        return values

    def _source(self, index: int, stored: Tensor, start: int) -> Tensor:
        """The model's values: as stored, or with its adapter's update."""
        update = self._tensor.sources[index].update
        if update is None:
            return stored
        if index not in self._updates:
            factors = [self._load_whole(factor) for factor in update.factors]
            self._factors_nonfinite[index] = sum(map(count_nonfinite, factors))
            self._updates[index] = LowRankUpdate(update, factors, self._compute, torch_ops, self._workspace)
        values = self._workspace.take(f"updated {index}", len(stored), self._compute).copy_(stored)
        self._updates[index].add_to(values, start)
        return values

    def _load_whole(self, tensor: TensorRef) -> Tensor:
        raw = torch.empty(tensor.n_bytes, dtype=torch.uint8)
        return self._load(tensor, 0, tensor.n, raw)

    def _load(self, tensor: Stored, start: int, stop: int, raw: Tensor) -> Tensor:
        """[stop - start] elements of a tensor on disk, in the memory of `raw`."""
        self._files.read_elements(tensor, start, raw_bytes(raw))
        self.bytes_read += raw.numel()
        return raw.view(torch_dtype(tensor.dtype))


class LowRankUpdate:
    """What an adapter adds to one tensor, with its factors in memory."""

    def __init__(
        self,
        update: LowRank,
        factors: Sequence[Tensor],
        compute: torch.dtype,
        operations: Any,
        workspace: Workspace,
    ) -> None:
        """factors: the elements of `update.factors`, as stored. They are copied. operations: of the backend."""
        up, *others = (factor.to(workspace.device, compute, copy=True) for factor in factors)
        up = up.view(-1, update.rank) * update.scale
        down = others[0].view(update.rank, -1) if others else torch.ones(1, 1, dtype=compute, device=workspace.device)
        left, right = (down.T, up.T) if update.transposed else (up, down)
        self._left, self._right = left.contiguous(), right.contiguous()
        self._operations, self._workspace = operations, workspace

    def add_to(self, values: Tensor, start: int) -> None:
        """Add the update of the elements from `start` on, in place. Shape: [n], of the compute dtype."""
        self._operations.add_low_rank(values, start, self._left, self._right, self._workspace)


def raw_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    array: Any = values.view(torch.uint8).numpy()
    return memoryview(array)
