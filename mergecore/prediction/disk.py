"""How fast the inputs are read and the output is written, from a few megabytes of each."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from mergecore.prediction.page_cache import must_wait_for
from mergecore.stream.positional_io import open_to_read, read_at

_FILES = 8
_PLACES = 4
"""In each of these files."""
_READ_BYTES = 1 << 20
"""At each of these places."""
_WRITE_BYTES = 1 << 25


@dataclass(frozen=True, slots=True)
class ReadSpeed:
    """Of some files."""

    cached: float
    """The share of them that lies in the page cache: 0 where the system can't tell."""
    bytes_per_s: float
    """Of the rest; infinite if there is none."""


def read_speed(files: Sequence[str], readers: int) -> ReadSpeed:
    """Reads at places that are spread over some of `files`, by so many readers at a time. Raises OSError."""
    chosen = [files[i * len(files) // _FILES] for i in range(_FILES)] if len(files) > _FILES else files
    places = [place for file in chosen for place in _spread(file)]
    on_disk = [place for place in places if not _is_cached(*place)]
    if not on_disk:
        return ReadSpeed(1.0, float("inf"))
    began = time.monotonic()
    with ThreadPoolExecutor(readers) as pool:
        n_bytes = sum(pool.map(_read, on_disk))
    return ReadSpeed(1 - len(on_disk) / len(places), n_bytes / max(time.monotonic() - began, 1e-9))


def write_speed(folder: Path) -> float:
    """Bytes per second that a new file in `folder` takes until they are on the disk. Raises OSError."""
    data = memoryview(os.urandom(1 << 20))
    began = time.monotonic()
    with TemporaryFile(dir=folder) as file:
        for _ in range(_WRITE_BYTES // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _WRITE_BYTES / max(time.monotonic() - began, 1e-9)


def _spread(file: str) -> list[tuple[str, int]]:
    """The file, and byte offsets in it."""
    n_bytes = Path(file).stat().st_size
    return [(file, (2 * i + 1) * n_bytes // (2 * _PLACES)) for i in range(_PLACES)]


def _is_cached(path: str, offset_bytes: int) -> bool:
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    file = open_to_read(path)
    try:
        return not must_wait_for(file, offset_bytes)
    finally:
        os.close(file)


def _read(place: tuple[str, int]) -> int:
    """The bytes that there were."""
    path, offset_bytes = place
    file = open_to_read(path)
    try:
        return read_at(file, memoryview(bytearray(_READ_BYTES)), offset_bytes)
    finally:
        os.close(file)
