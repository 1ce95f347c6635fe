"""The least a merge of files can do: read every input byte once, write the output's bytes by position, no arithmetic.

    python floor.py OUT MODEL... [--workers 2]

reads all MODELs and writes as many bytes as the first of them has. What a merge takes beyond this is its own doing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 1 << 20


class Chunk(NamedTuple):
    """A piece of a file."""

    path: Path
    offset: int
    size: int


def chunks(folder: Path) -> list[Chunk]:
    """All weights of a model, in pieces."""
    return [
        Chunk(path, offset, min(CHUNK_BYTES, path.stat().st_size - offset))
        for path in sorted(folder.glob("*.safetensors"))
        for offset in range(0, path.stat().st_size, CHUNK_BYTES)
    ]


def copy_share(out: Path, models: list[list[Chunk]], worker: int, workers: int) -> None:
    """Every `workers`-th chunk: read it from all models, write it once."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    files: dict[Path, int] = {}
    for number in range(worker, max(map(len, models)), workers):
        for model in models:
            for path, offset, size in model[number : number + 1]:
                if path not in files:
                    files[path] = os.open(path, os.O_RDONLY)
                os.preadv(files[path], [buffer[:size]], offset)
        for path, offset, size in models[0][number : number + 1]:
            target = out / path.name
            if target not in files:
                files[target] = os.open(target, os.O_WRONLY)
            os.pwrite(files[target], buffer[:size], offset)


def main() -> None:
    """Make the output files in full size, then copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    models = [chunks(folder) for folder in args.models]
    args.out.mkdir(parents=True)
    for path in {chunk.path for chunk in models[0]}:
        (args.out / path.name).touch()
        os.truncate(args.out / path.name, path.stat().st_size)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=copy_share, args=(args.out, models, worker, args.workers))
        for worker in range(args.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
