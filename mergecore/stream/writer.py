"""The weight files while they are written: sized and headed at once, filled in any order, named last."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from mergecore.errors import RunError
from mergecore.plan.plan import Shard
from mergecore.stream.positional_io import open_to_write, write_at

PARTIAL = ".partial"
"""Ends the names of weight files that aren't complete."""


def partial_path(folder: Path, shard: Shard) -> Path:
    """Where a shard lies until all of the output is written."""
    return folder / (shard.name + PARTIAL)


def create_partial_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Each shard with its header and full size; the tensors' bytes are holes."""
    for shard in shards:
        path = partial_path(folder, shard)
        try:
            with path.open("wb") as file:
                file.write(shard.header)
                file.truncate(shard.n_bytes)
        except OSError as error:
            raise write_error(path, error) from error


def publish_partial_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Bring every byte to the disk, then give the files their names."""
    for shard in shards:
        _sync(partial_path(folder, shard))
    for shard in shards:
        partial_path(folder, shard).replace(folder / shard.name)


def remove_partial_files(folder: Path) -> None:
    """What a failed run, this one or an earlier one, left of its weight files."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class ShardFiles:
    """The partial files, opened for writing by position as they are needed."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [partial_path(folder, shard) for shard in shards]
        self._open: dict[int, int] = {}

    def write(self, shard: int, offset_bytes: int, data: memoryview) -> None:
        """Raises RunError, when the disk is full for one."""
        try:
            if shard not in self._open:
                self._open[shard] = open_to_write(str(self._paths[shard]))
            write_at(self._open[shard], data, offset_bytes)
        except OSError as error:
            raise write_error(self._paths[shard], error) from error

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()


def write_error(path: Path, error: OSError) -> RunError:
    """What to tell when `path` can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError.at(path, "the disk is full", "free some space, or write to another disk")
    return RunError.at(path, f"can't be written: {error.strerror}")


def _sync(path: Path) -> None:
    try:
        file = open_to_write(str(path))
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise write_error(path, error) from error
