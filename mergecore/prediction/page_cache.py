"""Reading files into the page cache, and dropping them from it without being root."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mergecore.errors import RunError
from mergecore.stream.positional_io import open_to_read


def require_dropping() -> None:
    """Raise RunError where the system can't drop a file from its page cache, or can't tell whether it did."""
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")):
        raise RunError.at("--cold", "this system can't drop files from its page cache", "Linux can")


def warm(files: Iterable[Path]) -> None:
    """Read all of them once."""
    buffer = bytearray(1 << 22)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Iterable[Path]) -> None:
    """Drop them, which must lie on a disk and not only in memory. Raises RunError if one stays."""
    for path in files:
        file = open_to_read(str(path))
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            if not must_wait_for(file, path.stat().st_size // 2):
                raise RunError.at("--cold", f"`{path}` stays in the page cache", "name a --folder on a disk")
        finally:
            os.close(file)


def must_wait_for(file: int, offset_bytes: int) -> bool:
    """Whether a byte has to come from the disk. False on file systems that can't tell; those in memory are such."""
    try:
        os.preadv(file, [bytearray(1)], offset_bytes, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
