"""The folder of an adapter while it is written: at no moment does it look whole and isn't.

PEFT takes a folder for an adapter if it holds adapter_config.json. That of an older adapter goes before anything is put
in its place, and the new one comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mergecore.checkpoint.adapter import CONFIG_FILE, WEIGHT_FILES
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes
from mergecore.errors import PlanError
from mergecore.stream.positional_io import open_or_create, write_at
from mergecore.stream.reader import raw_bytes
from mergecore.stream.torch_dtypes import dtype_of_torch
from mergecore.stream.writer import PARTIAL, telling_write_errors

Shapes = Sequence[tuple[str, Dtype, tuple[int, ...]]]
"""Names, types and shapes of tensors."""


def check_adapter_folder(folder: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Raises PlanError if an adapter can't or mustn't be written into `folder`. `inputs` are what is read for it."""
    if folder.exists() and not folder.is_dir():
        raise PlanError.at(folder, "is a file, not a folder")
    for path in inputs:
        read = path.parent if path.is_file() else path
        if folder.exists() and read.resolve() == folder.resolve():
            raise PlanError.at(folder, f"is the folder of the input {path}", "write to another folder")
    if not overwrite and folder.exists() and any(path.suffix != PARTIAL for path in folder.iterdir()):
        raise PlanError.at(folder, "is not empty", "--overwrite replaces the adapter in it")


class AdapterFolder:
    """An adapter that is written tensor by tensor, whose shapes are known only when they come.

    Used in a `with`: if it is left by an error or before `finish`, nothing stays but what was there before.
    """

    def __init__(self, folder: Path, largest: Shapes) -> None:
        """`largest` are all tensors that may come, in the largest shapes that they may have: so much space is left for
        the header. Raises RunError.
        """
        self._folder = folder
        self._existed = folder.exists()
        self._weights = folder / WEIGHT_FILES[0]
        self._partial = folder / (WEIGHT_FILES[0] + PARTIAL)
        self._header_bytes = len(header_bytes(largest))
        self._written: list[tuple[str, Dtype, tuple[int, ...]]] = []
        self._end = self._header_bytes
        with telling_write_errors(self._partial):
            folder.mkdir(parents=True, exist_ok=True)
            self._partial.unlink(missing_ok=True)
            self._file = open_or_create(str(self._partial))

    @property
    def weight_bytes(self) -> int:
        """Of the file of weights, so far."""
        return self._end

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, after the others. Raises RunError."""
        self.begin(name, dtype_of_torch(tensor.dtype), tuple(tensor.shape))
        self.append(tensor.flatten())

    def begin(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
        """The same for a tensor whose elements come by `append`, in parts."""
        self._written.append((name, dtype, shape))

    def append(self, values: Tensor) -> None:
        """[n] elements of the tensor that was begun, in its type. Raises RunError."""
        with telling_write_errors(self._partial):
            data = raw_bytes(values.contiguous())
            write_at(self._file, data, self._end)
        self._end += len(data)

    def finish(self, config: Mapping[str, Any], card: str) -> None:
        """Give the files their names, adapter_config.json last. Raises RunError."""
        with telling_write_errors(self._folder):
            header = header_bytes(self._written, n_bytes=self._header_bytes)
            write_at(self._file, memoryview(header), 0)
            os.fsync(self._file)
            for name in (CONFIG_FILE, *WEIGHT_FILES):
                (self._folder / name).unlink(missing_ok=True)
            self._partial.replace(self._weights)
            self._write("README.md", card)
            self._write(CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        """The whole file or none of it."""
        partial = self._folder / (name + PARTIAL)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._folder / name)

    def __enter__(self) -> AdapterFolder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._file)
        self._partial.unlink(missing_ok=True)
        if not self._existed:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                self._folder.rmdir()
