"""Reads tiles of tensors, by position, into buffers that are used again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError
from mergecore.plan.plan import OutputTensor
from mergecore.stream.positional_io import open_to_read, read_at
from mergecore_kernels.torch_ops.nonfinite import count_nonfinite
from mergecore_kernels.torch_ops.tile import Tile

_MOST_OPEN_FILES = 128


class Files:
    """Files kept open for reading by position."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def read(self, path: str, offset_bytes: int, into: memoryview) -> None:
        """Fill `into` from the file. Raises CheckpointError if the file can't be read or ends too soon."""
        try:
            count = read_at(self._descriptor(path), into, offset_bytes)
        except OSError as error:
            raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error
        if count < len(into):
            raise CheckpointError.at(path, "became shorter while it was read", "is it being written again?")

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()

    def _descriptor(self, path: str) -> int:
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= _MOST_OPEN_FILES:
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
        if len(self._buffers[index]) < n_bytes:
            self._buffers[index] = torch.empty(n_bytes, dtype=torch.uint8)
        return self._buffers[index][:n_bytes]


class TensorTiles:
    """The tiles of one output tensor's sources, from element `start` to `stop`. Each iteration is one pass.

    A tile lies in `buffers`, so it holds only until the next one is drawn. The first pass counts what isn't finite.
    """

    def __init__(
        self,
        tensor: OutputTensor,
        start: int,
        stop: int,
        tile: int,
        files: Files,
        buffers: Buffers,
        device: torch.device,
    ) -> None:
        self.bytes_read = 0
        self.nonfinite = [0] * len(tensor.sources)
        """Values in each source that are NaN or infinite, as far as the first pass has come."""
        self._tensor = tensor
        self._spans = [(at, min(at + tile, stop)) for at in range(start, stop, tile)]
        self._files = files
        self._buffers = buffers
        self._device = device
        self._counted = False

    def __iter__(self) -> Iterator[Tile]:
        compute = torch.float64 if self._tensor.double else torch.float32
        for start, stop in self._spans:
            read = [self._read(i, source.tensor, start, stop) for i, source in enumerate(self._tensor.sources)]
            base = read.pop() if self._tensor.base is not None else None
            yield Tile(start=start, inputs=read, base=base, compute=compute)
        self._counted = True

    def _read(self, index: int, tensor: TensorRef, start: int, stop: int) -> Tensor:
        size = tensor.dtype.size
        raw = self._buffers.take(index, (stop - start) * size)
        self._files.read(tensor.file, tensor.offset_bytes + start * size, raw_bytes(raw))
        self.bytes_read += len(raw)
        values = raw.view(torch_dtype(tensor.dtype))
        if not self._counted and tensor.dtype.is_floating:
            self.nonfinite[index] += count_nonfinite(values)
        return values.to(self._device)


def raw_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    array: Any = values.view(torch.uint8).numpy()
    return memoryview(array)


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The element type in torch."""
    return _TORCH[dtype]


_TORCH = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.I64: torch.int64,
    Dtype.I32: torch.int32,
    Dtype.I16: torch.int16,
    Dtype.I8: torch.int8,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
    Dtype.U64: torch.uint64,
    Dtype.U32: torch.uint32,
    Dtype.U16: torch.uint16,
}
