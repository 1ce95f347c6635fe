"""Reading and writing by position, which needs no shared file offset and so no order among workers."""

from __future__ import annotations

import os
from pathlib import Path

MOST_OPEN_FILES = 128
"""That one thread keeps open for reading, and as many for writing."""
_SLOW_TO_RESERVE = {"tmpfs", "nfs", "nfs4", "cifs", "smb3", "9p"}
"""File systems on which reserving takes as long as writing: in memory, and where the C library does it byte by byte."""
_BINARY = getattr(os, "O_BINARY", 0)  # Windows opens files as text otherwise
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""What is written is never a link, which somebody could have laid to a file that isn't ours."""


def open_to_read(path: str) -> int:
    """A file descriptor. Raises OSError."""
    return os.open(path, os.O_RDONLY | _BINARY)


def open_to_write(path: str) -> int:
    """A file descriptor of a file that exists. Raises OSError."""
    return os.open(path, os.O_RDWR | _NO_LINK | _BINARY)


def open_or_create(path: str) -> int:
    """The same of a file that is made if it isn't there. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _BINARY, 0o666)


def open_to_append(path: str) -> int:
    """A file descriptor of a file that is made if it isn't there. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK | _BINARY, 0o666)


def reserve(file: int, n_bytes: int) -> None:
    """Give a file this size, and the space for it where the file system can reserve it. Raises OSError."""
    os.ftruncate(file, n_bytes)
    if hasattr(os, "posix_fallocate") and n_bytes and _file_system(file) not in _SLOW_TO_RESERVE:
        os.posix_fallocate(file, 0, n_bytes)


def _file_system(file: int) -> str:
    """The type of the file system that a file is on; empty where the system doesn't tell."""
    device = os.fstat(file).st_dev
    this = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    types = (mount.partition(" - ")[2].split(maxsplit=1)[0] for mount in mounts if mount.split()[2] == this)
    return next(types, "")


def read_at(file: int, into: memoryview, offset_bytes: int) -> int:
    """Fill `into` and return its length, or the bytes there were if the file ends before. Raises OSError."""
    done = 0
    while done < len(into):
        count = _read_some(file, into[done:], offset_bytes + done)
        if count == 0:
            break
        done += count
    return done


def write_at(file: int, data: memoryview, offset_bytes: int) -> None:
    """Write all of `data`. Raises OSError."""
    done = 0
    while done < len(data):
        done += _write_some(file, data[done:], offset_bytes + done)


if hasattr(os, "preadv") and hasattr(os, "pwrite"):

    def _read_some(file: int, into: memoryview, offset_bytes: int) -> int:
        return os.preadv(file, [into], offset_bytes)

    def _write_some(file: int, data: memoryview, offset_bytes: int) -> int:
        return os.pwrite(file, data, offset_bytes)

else:  # Windows: each process has its own descriptors, so its own offset

    def _read_some(file: int, into: memoryview, offset_bytes: int) -> int:
        os.lseek(file, offset_bytes, os.SEEK_SET)
        data = os.read(file, len(into))
        into[: len(data)] = data
        return len(data)

    def _write_some(file: int, data: memoryview, offset_bytes: int) -> int:
        os.lseek(file, offset_bytes, os.SEEK_SET)
        return os.write(file, data)
