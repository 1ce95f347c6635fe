"""Reads from files straight into the memory of an NVIDIA GPU, past the host's: by kvikio, where it is installed.

Source: NVIDIA GPUDirect Storage, https://docs.nvidia.com/gpudirect-storage/, by https://github.com/rapidsai/kvikio,
which copies by way of the host's memory itself where a file system or a driver can't do better.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from mergecore.errors import CheckpointError


class DirectReader(Protocol):
    """Reads from files into device memory. Each thread has its own."""

    def read(self, path: str, offset_bytes: int, into: Tensor) -> None:
        """Fill `into`, uint8 [n], and return when it is filled. Raises CheckpointError."""

    def close(self) -> None: ...


class KvikioFiles:
    """Files that kvikio keeps open, for one device. For one thread."""

    def __init__(self, device: torch.device, most_open: int) -> None:
        self._device = device
        self._most_open = most_open
        self._open: dict[str, Any] = {}

    def read(self, path: str, offset_bytes: int, into: Tensor) -> None:
        """Raises CheckpointError if the file can't be read or ends too soon."""
        try:
            with torch.cuda.device(self._device):
                count = self._file(path).read(into, len(into), offset_bytes)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError.at(
                path, f"can't be read by kvikio: {reason}", "uninstall kvikio to read it by way of the host's memory"
            ) from error
        if count < len(into):
            raise CheckpointError.at(path, "became shorter while it was read", "is it being written again?")

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, path: str) -> Any:
        if path not in self._open:
            import kvikio  # type: ignore[import-not-found]  # optional

            if len(self._open) >= self._most_open:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = kvikio.CuFile(path)
        return self._open[path]


def open_direct_reader(device: torch.device, most_open: int) -> DirectReader | None:
    """For one thread; None where data comes by way of the host's memory."""
    return KvikioFiles(device, most_open) if reads_directly(device) else None


def reads_directly(device: torch.device) -> bool:
    """Whether files are read straight into this device's memory."""
    return device.type == "cuda" and torch.version.hip is None and find_spec("kvikio") is not None
