"""The floor: the least that a merge of files can do.

Worker processes read every byte of the inputs once and write the output's bytes by position, with no arithmetic. What a
merge takes beyond that and its start-up is its own doing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from mergecore.diagnostics.spawned import spawned
from mergecore.stream.positional_io import open_to_read, open_to_write, read_at, write_at
from mergecore.stream.writer import sync_file, telling_write_errors

CHUNK_BYTES = 1 << 20


class _Chunk(NamedTuple):
    """A part of a file."""

    path: Path
    offset_bytes: int
    n_bytes: int


class Floor:
    """Workers that have started and wait."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool = pool
        self._workers = workers

    def seconds(self, models: Sequence[Sequence[Path]], out: Path) -> float:
        """The time for reading the weight files of all `models` and writing those of the first to the new folder `out`.

        As after a merge, all is on the disk at the end. Raises RunError.
        """
        began = time.perf_counter()
        with telling_write_errors(out):
            out.mkdir()
            for path in models[0]:
                (out / path.name).touch()
                os.truncate(out / path.name, path.stat().st_size)
            list(self._pool.map(partial(_copy_share, models, out, self._workers), range(self._workers)))
        for path in models[0]:
            sync_file(out / path.name)
        return time.perf_counter() - began


@contextmanager
def start_floor(workers: int) -> Iterator[Floor]:
    """So many processes, all of them ready."""
    with spawned(workers) as pool:
        list(pool.map(time.sleep, [0.1] * workers))  # one is started for each call that finds none idle
        yield Floor(pool, workers)


def _copy_share(models: Sequence[Sequence[Path]], out: Path, workers: int, worker: int) -> None:
    """One of `workers` equal runs of chunks, chunk by chunk: read it from all models, write it once."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    shares = [_share(_chunks(model), workers, worker) for model in models]
    sources = {path: open_to_read(str(path)) for model in models for path in model}
    targets = {path: open_to_write(str(out / path.name)) for path in models[0]}
    try:
        for chunks in zip_longest(*shares):
            for path, offset_bytes, n_bytes in filter(None, chunks):
                read_at(sources[path], buffer[:n_bytes], offset_bytes)
            if chunks[0] is not None:
                path, offset_bytes, n_bytes = chunks[0]
                write_at(targets[path], buffer[:n_bytes], offset_bytes)
    finally:
        for file in (*sources.values(), *targets.values()):
            os.close(file)


def _share(chunks: Sequence[_Chunk], workers: int, worker: int) -> Sequence[_Chunk]:
    """Chunks that follow one another, since systems read ahead."""
    return chunks[worker * len(chunks) // workers : (worker + 1) * len(chunks) // workers]


def _chunks(files: Sequence[Path]) -> list[_Chunk]:
    sizes = {path: path.stat().st_size for path in files}
    return [
        _Chunk(path, offset, min(CHUNK_BYTES, n_bytes - offset))
        for path, n_bytes in sizes.items()
        for offset in range(0, n_bytes, CHUNK_BYTES)
    ]
