"""The folder of an adapter while it is written: at no moment does it look whole and isn't.

PEFT takes a folder for an adapter if it holds adapter_config.json. That of an older adapter goes before anything is put
in its place, and the new one comes last but for the manifest. The journal of merges keeps other runs out meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from torch import Tensor

from mergecore.checkpoint.adapter import CONFIG_FILE, WEIGHT_FILES
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes
from mergecore.checkpoint.tokenizer_files import TOKENIZER_FILES
from mergecore.errors import PlanError
from mergecore.output.manifest import MANIFEST, file_hash, manifest_text
from mergecore.output.model_card import CARD
from mergecore.output.whole_file import write_whole
from mergecore.stream.digests import BlockHasher, tensor_digest
from mergecore.stream.journal import JOURNAL, Journal, read_history
from mergecore.stream.positional_io import open_or_create, write_at
from mergecore.stream.reader import raw_bytes
from mergecore.stream.torch_dtypes import dtype_of_torch
from mergecore.stream.writer import PARTIAL, remove_partial_files, telling_write_errors

Shapes = Sequence[tuple[str, Dtype, tuple[int, ...]]]
"""Names, types and shapes of tensors."""


def check_adapter_folder(folder: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Raises PlanError if an adapter can't or mustn't be written into `folder`. `inputs` are what is read for it."""
    if folder.exists() and not folder.is_dir():
        raise PlanError.at(folder, "is a file, not a folder")
    for path in dict.fromkeys(path.parent if path.is_file() else path for path in inputs):
        if folder.exists() and path.resolve() == folder.resolve():
            raise PlanError.at(folder, f"is the folder of the input {path}", "write to another folder")
    if not overwrite and folder.exists() and _holds_something_else(folder):
        raise PlanError.at(folder, "is not empty", "--overwrite replaces the adapter in it")


def _holds_something_else(folder: Path) -> bool:
    """Whether there is anything that a run which was killed didn't leave: a merge of models can go on with its work."""
    names = (path.name for path in folder.iterdir() if path.suffix != PARTIAL)
    return bool(read_history(folder).identity) or any(name != JOURNAL for name in names)


class AdapterFolder:
    """An adapter that is written tensor by tensor, whose shapes are known only when they come.

    Used in a `with`: if it is left by an error or before `finish`, nothing stays but what was there before.
    """

    def __init__(self, folder: Path, largest: Shapes) -> None:
        """`largest` are all tensors that may come, in the largest shapes that they may have: so much space is left for
        the header. Raises RunError, also if another run is at this folder.
        """
        self._folder = folder
        self._existed = folder.exists()
        self._weights = folder / WEIGHT_FILES[0]
        self._partial = folder / (WEIGHT_FILES[0] + PARTIAL)
        self._header_bytes = len(header_bytes(largest))
        self._written: list[tuple[str, Dtype, tuple[int, ...]]] = []
        self._hashers: list[BlockHasher] = []
        self._end = self._header_bytes
        with telling_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder)
        try:
            with telling_write_errors(self._partial):
                self._journal.restart({})
                remove_partial_files(folder)
                self._file = open_or_create(str(self._partial))
        except BaseException:
            self._journal.discard()
            raise

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
        self._hashers.append(BlockHasher(0, prod(shape) * dtype.size))

    def append(self, values: Tensor) -> None:
        """[n] elements of the tensor that was begun, in its type. Raises RunError."""
        with telling_write_errors(self._partial):
            data = raw_bytes(values.contiguous())
            write_at(self._file, data, self._end)
        self._hashers[-1].add(data)
        self._end += len(data)

    def finish(
        self,
        config: Mapping[str, Any],
        card: str,
        origin: Mapping[str, Any],
        tokenizer: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Give the files their names, then comes adapter_config.json, and last the manifest, which tells the `origin`
        beside what was written. Raises RunError.
        """
        with telling_write_errors(self._folder):
            header = header_bytes(self._written, n_bytes=self._header_bytes)
            write_at(self._file, memoryview(header), 0)
            os.fsync(self._file)
            for name in (MANIFEST, CONFIG_FILE, *WEIGHT_FILES, *TOKENIZER_FILES):
                (self._folder / name).unlink(missing_ok=True)
            self._partial.replace(self._weights)
            for name, content in tokenizer.items():
                write_whole(self._folder / name, content)
            write_whole(self._folder / CARD, card)
            write_whole(self._folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            contents = self._contents([*tokenizer, CONFIG_FILE])
            write_whole(self._folder / MANIFEST, manifest_text({**origin, **contents}))

    def _contents(self, files: Iterable[str]) -> dict[str, Any]:
        """What the manifest tells of the files."""
        tensors = []
        for (name, dtype, shape), hasher in zip(self._written, self._hashers, strict=True):
            digest = tensor_digest(hasher.found, prod(shape) * dtype.size)
            tensors.append([name, self._weights.name, dtype.value, list(shape), digest])
        return {
            "files": {name: file_hash(self._folder / name) for name in files},
            "weights": {self._weights.name: self._end},
            "tensors": tensors,
        }

    def __enter__(self) -> AdapterFolder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._file)
        self._partial.unlink(missing_ok=True)
        self._journal.discard()
        if not self._existed:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                self._folder.rmdir()
