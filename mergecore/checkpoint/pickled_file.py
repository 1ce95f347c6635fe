"""The tensors of a file that `torch.save` wrote: which there are, and where they lie. Loads nothing and runs nothing.

Format since torch 1.6: a zip archive of uncompressed entries under one folder of any name. `data.pkl` is a pickle in
which tensors name storages, and `data/<key>` holds the bytes of a storage. Before: five pickles one after another (a
magic number, the version, the machine, the object, the keys of its storages), then each storage as its number of
elements (8 bytes) and its bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.inert_pickle import (
    DTYPES,
    STORAGES,
    UNTYPED_STORAGES,
    RefusedError,
    Storage,
    StoredTensor,
    read_pickle,
)
from mergecore.checkpoint.safetensors_file import TensorRef, check_name
from mergecore.errors import CheckpointError

MOST_PICKLE_BYTES = 1 << 24
"""Of the description of all tensors: a hundred thousand of them take less."""
_MOST_DIMENSIONS = 64
_WRAPPERS = ("state_dict", "model")
"""Keys under which training code puts the tensors."""
_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NO_PICKLE = (ValueError, TypeError, LookupError)
"""What the inert machine raises for bytes that are no pickle."""

Extent = tuple[int, int]
"""Where a storage's bytes begin in the file, and how many there are."""


def read_pickled(path: Path) -> dict[str, TensorRef]:
    """All tensors of a file, by name. Those of a `state_dict` or `model` inside the file, if there is one.

    Raises CheckpointError if the file can't be read, is broken, or holds anything but tensors and plain data.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            file.seek(0)
            content, extents = _read_zip(path, file) if zipped else _read_legacy(path, file)
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror or error}") from error
    except RefusedError as error:
        hint = "save it again with safe_serialization=True, where you trust it"
        raise CheckpointError.at(path, str(error), hint) from error
    tensors = {name: _tensor(path, name, stored, extents) for name, stored in _tensors_in(content).items()}
    if not tensors:
        keys = ", ".join(f"`{key!s:.40}`" for key in list(content)[:5]) if isinstance(content, dict) else ""
        raise CheckpointError.at(path, f"holds no tensors by name, only {keys or 'other data'}")
    return tensors


def _tensors_in(content: Any) -> dict[str, StoredTensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)}


def _read_zip(path: Path, file: IO[bytes]) -> tuple[Any, Mapping[str, Extent]]:
    try:
        entries = {entry.filename: entry for entry in zipfile.ZipFile(file).infolist()}
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise _broken(path, "it has no whole directory, so it was probably cut off") from error
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError.at(path, "is a zip archive without a `data.pkl`, so `torch.save` didn't write it")
    root = pickles[0].removesuffix("data.pkl")
    extents = {
        name.removeprefix(f"{root}data/"): _extent(path, file, entry)
        for name, entry in entries.items()
        if name.startswith((f"{root}data/", f"{root}data.pkl", f"{root}byteorder"))
    }

    def read(name: str) -> bytes:
        offset, n_bytes = extents[root + name]
        file.seek(offset)
        return file.read(n_bytes)

    if root + "byteorder" in extents and read("byteorder")[:3] == b"big":
        raise _big_endian(path)
    if extents[pickles[0]][1] > MOST_PICKLE_BYTES:
        raise _broken(path, f"its description of the tensors takes more than {MOST_PICKLE_BYTES} bytes")
    content, _ = _unpickled(path, io.BytesIO(read("data.pkl")))
    return content, extents


def _extent(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> Extent:
    """Where an entry's bytes are: after its own header, whose length only that header tells."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError.at(
            path, f"its entry `{entry.filename}` is compressed or encrypted, so it can't be read in parts",
            "save it again with torch.save",
        )  # fmt: skip
    file.seek(max(entry.header_offset, 0))
    header = file.read(_LOCAL_HEADER.size)
    if entry.header_offset < 0 or len(header) < _LOCAL_HEADER.size or not header.startswith(_ZIP_MAGIC):
        raise _broken(path, f"its entry `{entry.filename}` is not where the directory says")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    offset = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    _check_end(path, f"its entry `{entry.filename}`", offset + entry.file_size)
    return offset, entry.file_size


def _read_legacy(path: Path, file: IO[bytes]) -> tuple[Any, Mapping[str, Extent]]:
    pickles = io.BytesIO(file.read(MOST_PICKLE_BYTES))
    if _unpickled(path, pickles)[0] != _LEGACY_MAGIC:
        raise _not_torch(path)
    _, (machine, _), (content, storages), (keys, _) = (_unpickled(path, pickles) for _ in range(4))
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise _big_endian(path)
    extents: dict[str, Extent] = {}
    offset = pickles.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise _broken(path, "it holds storages that it doesn't describe")
        file.seek(offset)
        n_bytes = int.from_bytes(file.read(8), "little") * _element_bytes(path, storages[key])
        extents[key] = offset + 8, n_bytes
        offset += 8 + n_bytes
        _check_end(path, f"its storage `{key:.40}`", offset)
    return content, extents


def _unpickled(path: Path, pickles: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    try:
        return read_pickle(pickles)
    except RefusedError:
        raise
    except _NO_PICKLE as error:
        raise _not_torch(path) from error


def _tensor(path: Path, name: str, stored: StoredTensor, extents: Mapping[str, Extent]) -> TensorRef:
    check_name(path, name)
    dtype = _dtype(path, name, stored)
    offset, shape, strides = stored.offset, stored.shape, stored.strides
    if not (_natural((offset,)) and _natural(shape) and _natural(strides) and len(shape) == len(strides)):
        raise _broken(path, f"`{name}` has a shape, offset or stride that is no natural number")
    if stored.storage.key not in extents:
        raise _broken(path, f"the bytes of `{name}` are not in it")
    begin, n_bytes = extents[stored.storage.key]
    tensor = TensorRef(str(path), begin + offset * dtype.size, dtype, shape)
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if tensor.n and (offset + last + 1) * dtype.size > n_bytes:
        raise _broken(path, f"`{name}` reaches beyond the {n_bytes} bytes of its storage")
    return tensor if _is_contiguous(shape, strides) else replace(tensor, strides=strides)


def _natural(numbers: Any) -> bool:
    return (
        type(numbers) is tuple
        and len(numbers) <= _MOST_DIMENSIONS
        and all(type(number) is int and number >= 0 for number in numbers)
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements follow one another, the last axis fastest. An axis of one element may have any stride."""
    return not prod(shape) or all(
        n == 1 or stride == prod(shape[axis + 1 :]) for axis, (n, stride) in enumerate(zip(shape, strides, strict=True))
    )


def _dtype(path: Path, name: str, stored: StoredTensor) -> Dtype:
    found = STORAGES.get(stored.kind) or DTYPES.get(stored.kind)
    if found is None:
        raise CheckpointError.at(path, f"`{name}` has elements of {stored.kind}, which is not supported")
    return found


def _element_bytes(path: Path, storage: Storage) -> int:
    """What a legacy file counts a storage in; untyped ones count bytes."""
    if storage.kind in UNTYPED_STORAGES:
        return 1
    if storage.kind not in STORAGES:
        raise CheckpointError.at(path, f"holds a {storage.kind}, which is not supported")
    return STORAGES[storage.kind].size


def _check_end(path: Path, what: str, end: int) -> None:
    size = path.stat().st_size
    if end > size:
        raise _broken(path, f"{what} ends at byte {end}, but the file has only {size}")


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError.at(path, f"not a whole torch file: {what}", "copy or download it again")


def _not_torch(path: Path) -> CheckpointError:
    return CheckpointError.at(
        path, "is not a file that `torch.save` wrote, or it is broken", "copy or download it again"
    )


def _big_endian(path: Path) -> CheckpointError:
    return CheckpointError.at(
        path, "was written on a machine with the other byte order", "save it again on this machine"
    )
