"""The weight files while they are written: sized and headed at once, filled in any order, named last."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergecore.errors import RunError
from mergecore.plan.plan import Shard
from mergecore.stream.positional_io import MOST_OPEN_FILES, open_or_create, open_to_write, reserve, write_at

PARTIAL = ".partial"
"""Ends the names of weight files that aren't complete."""


def partial_path(folder: Path, shard: Shard) -> Path:
    """Where a shard lies until all of the output is written."""
    return folder / (shard.name + PARTIAL)


def prepare_partial_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Each shard with its header and full size. What is in it already stays; the rest is reserved, or else a hole.

    Raises RunError if the disk is full.
    """
    for shard in shards:
        path = partial_path(folder, shard)
        with telling_write_errors(path):
            file = open_or_create(str(path))
            try:
                write_at(file, memoryview(shard.header), 0)
                reserve(file, shard.n_bytes)
            finally:
                os.close(file)


def reserved_bytes(folder: Path, shards: Sequence[Shard]) -> int:
    """What an interrupted run has written already, or reserved: space that need not be free any more."""
    paths = [partial_path(folder, shard) for shard in shards]
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in paths if path.exists())


def publish_partial_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Bring every byte to the disk, then give the files their names."""
    for shard in shards:
        sync_file(partial_path(folder, shard))
    for shard in shards:
        partial_path(folder, shard).replace(folder / shard.name)


def unpublish_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Undo what a run that was interrupted had published."""
    for shard in shards:
        if not partial_path(folder, shard).exists() and (folder / shard.name).exists():
            (folder / shard.name).replace(partial_path(folder, shard))


def remove_partial_files(folder: Path) -> None:
    """What an earlier run left of its weight files."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class ShardFiles:
    """The partial files, opened for writing by position as they are needed. For one thread."""

    def __init__(self, folder: Path, shards: Sequence[Shard], most_open: int = MOST_OPEN_FILES) -> None:
        self._most_open = most_open
        self._paths = [partial_path(folder, shard) for shard in shards]
        self._open: dict[int, int] = {}

    def write(self, shard: int, offset_bytes: int, data: memoryview) -> None:
        """Raises RunError, when the disk is full for one."""
        with telling_write_errors(self._paths[shard]):
            if shard not in self._open:
                if len(self._open) >= self._most_open:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[shard] = open_to_write(str(self._paths[shard]))
            write_at(self._open[shard], data, offset_bytes)

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()


@contextlib.contextmanager
def telling_write_errors(path: Path) -> Iterator[None]:
    """Raises a RunError that names `path` for what the system raises."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> RunError:
    """What to tell when `path` can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError.at(path, "the disk is full", "free some space, and give the same command again")
    return RunError.at(path, f"can't be written: {error.strerror}")


def sync_file(path: Path) -> None:
    """Bring all of a file's bytes to the disk, whoever wrote them. Raises RunError."""
    with telling_write_errors(path):
        file = open_to_write(str(path))
        try:
            os.fsync(file)
        finally:
            os.close(file)
