"""The header of a safetensors file: which tensors lie in it, and where.

Format: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes without a gap
(https://huggingface.co/docs/safetensors). We parse headers ourselves, since a merge reads the same part of several
files at once, by position, into its own buffers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mergecore.checkpoint.dtypes import Dtype, Shaped
from mergecore.errors import CheckpointError, Problem

_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""
_MOST_DIMENSIONS = 64
_LONGEST_NAME = 1000
_LARGEST = 1 << 62
"""No number in a header is larger: bytes and elements are counted in 64 bits."""
_NO_WEIGHTS = {
    b"version ": "the pointer of Git LFS to a file",
    b"<!DOCTYP": "a web page",
    b"<!doctyp": "a web page",
}
"""How files begin that were downloaded in place of weights."""
_ALIGNMENT = 64
_DTYPES = {dtype.value: dtype for dtype in Dtype}


@dataclass(frozen=True, slots=True)
class TensorRef(Shaped):
    """Where a tensor lies on disk."""

    file: str
    offset_bytes: int
    """From the start of the file."""
    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """In elements; None where the elements follow one another, the last axis fastest."""

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """What lies on disk of it: itself, where other tensors are put together."""
        return (self,)


def read_header(path: Path) -> dict[str, TensorRef]:
    """All tensors of a file, by name, in the file's order.

    Raises CheckpointError if the file can't be read, is no safetensors file, or is longer or shorter than its header
    says: a download that stopped early is found here.
    """
    try:
        with path.open("rb") as file:

            def read(n_bytes: int) -> bytes:
                file.seek(0)
                return file.read(n_bytes)

            return parse_header(path, path.stat().st_size, read)
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error


def parse_header(path: Path, file_bytes: int, read: Callable[[int], bytes]) -> dict[str, TensorRef]:
    """The same for a file that needn't be here yet. `read` gives so many of its first bytes."""
    header, data_start = _load(path, file_bytes, read)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in header.items()}
    _check_layout(path, tensors, data_start, file_bytes)
    return tensors


def header_bytes(tensors: Sequence[tuple[str, Dtype, tuple[int, ...]]], n_bytes: int = 0) -> bytes:
    """The start of a file that holds `tensors` (name, dtype, shape) one after the other, length prefix included.

    Padded so that the first tensor begins at a multiple of 64 bytes, and not before `n_bytes`, which is one too.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + prod(shape) * dtype.size
        entries[name] = {"dtype": dtype.value, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    text = text.ljust(n_bytes - _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def check_name(path: Path, name: str) -> None:
    """Raises CheckpointError for a tensor name that no file could be written with, or that would take long to match."""
    if len(name) > _LONGEST_NAME:
        raise _broken(path, f"a tensor's name has {len(name)} characters: `{name[:40]}...`")
    try:
        name.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON and pickles can hold
        raise _broken(path, f"the tensor name {name!a} is not Unicode text") from error


class _RepeatedKeyError(ValueError):
    """A JSON object has the same key twice, of which parsers see only the last."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that a JSON parser has read these pairs of. Raises _RepeatedKeyError, with the key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _RepeatedKeyError(next(key for key, count in counts.items() if count > 1))
    return found


def _load(path: Path, file_bytes: int, read: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the data starts."""
    start = read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if start in _NO_WEIGHTS:
        raise CheckpointError.at(path, f"is {_NO_WEIGHTS[start]}, not the weights", "download it again")
    if file_bytes < _LENGTH_BYTES or length > file_bytes - _LENGTH_BYTES:
        raise _broken(path, f"its header should take {length} bytes, but the file has only {file_bytes}")
    if length > MOST_HEADER_BYTES:
        raise _broken(path, f"its header should take {length} bytes, and none takes more than {MOST_HEADER_BYTES}")
    try:
        header = json.loads(read(_LENGTH_BYTES + length)[_LENGTH_BYTES:], object_pairs_hook=_unrepeated)
    except _RepeatedKeyError as error:
        raise _broken(path, f"its header has `{error}` twice") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header, _LENGTH_BYTES + length


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorRef:
    check_name(path, name)
    try:
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        well_formed = all(type(number) is int and 0 <= number < _LARGEST for number in (*shape, begin, end))
        dtype_name = entry["dtype"]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"its entry for `{name}` lacks dtype, shape or data_offsets") from error
    if not well_formed or len(shape) > _MOST_DIMENSIONS:
        raise _broken(path, f"its entry for `{name}` has a shape or offset that is no natural number, or too large")
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        known = ", ".join(dtype.value for dtype in Dtype)
        raise CheckpointError.at(path, f"`{name}` has the dtype {dtype_name!s:.40}; supported are {known}")
    tensor = TensorRef(str(path), data_start + begin, dtype, shape)
    if tensor.n_bytes != end - begin:
        raise _broken(path, f"`{name}` should take {tensor.n_bytes} bytes but has {end - begin}")
    return tensor


def _check_layout(path: Path, tensors: dict[str, TensorRef], data_start: int, file_bytes: int) -> None:
    """Tensors must fill the data without gap or overlap, and the file must end with the last."""
    end = data_start
    for offset_bytes, n_bytes in sorted((t.offset_bytes, t.n_bytes) for t in tensors.values()):
        if offset_bytes != end:
            raise _broken(path, "its tensors overlap or leave a gap")
        end += n_bytes
    if end != file_bytes:
        what = "truncated" if file_bytes < end else "longer than its header says"
        raise _broken(path, f"it is {what}: {end} bytes expected, {file_bytes} found")


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(Problem(str(path), f"not a whole safetensors file: {what}", "copy or download it again"))
