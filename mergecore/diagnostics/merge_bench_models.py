"""Generated checkpoints: a base model and fine-tunes of it with random weights, food for merge benchmarks.

The base is N(0, 0.02) and its norms N(1, 0.02); each fine-tune is the base plus N(0, s), with s from 0.0002 for the
first to 0.002 for the last, all rounded to the dtype. So, as in real fine-tunes stored in bfloat16, many deltas are
zero and the others have few distinct values.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes
from mergecore.diagnostics.devices import used_alone
from mergecore.diagnostics.merge_bench_shapes import Dims, Shape
from mergecore.diagnostics.spawned import spawned
from mergecore.errors import ConfigError
from mergecore.stream.pool import default_workers
from mergecore.stream.positional_io import open_to_write, write_at
from mergecore.stream.writer import sync_file, telling_write_errors

BLOCK = 1 << 20
"""Elements drawn at once, from a seed of their own: so the bytes don't depend on the number of processes."""
PIECE = 16 * BLOCK
"""Elements that a process fills before it takes the next ones."""
SMALL_BYTES = 1 << 22
"""A model up to this size is made in this process: others would take longer to start."""
BASE_DEVIATION = 0.02
TUNE_DEVIATIONS = (0.0002, 0.002)
RECORD = "generated.json"
"""Written last, beside the models: what they are."""

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Is given the bytes there will be; inside, what it gives is called with the bytes written since the last call."""


def no_progress(total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda n_bytes: None)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """What to generate. The same set gives the same bytes."""

    shape: Shape
    dtype: Dtype
    tunes: int
    """Fine-tunes, beside the base."""
    shard_bytes: int = 10**9
    seed: int = 0

    @property
    def model_bytes(self) -> int:
        """Of the weights of one model."""
        return self.shape.elements * self.dtype.size

    @property
    def n_bytes(self) -> int:
        """Of the weights of all models."""
        return self.model_bytes * (1 + self.tunes)

    def folders(self, parent: Path) -> list[Path]:
        """One per model, the base first."""
        return [parent / "base", *(parent / f"tune{i}" for i in range(1, self.tunes + 1))]

    def deviations(self) -> list[float]:
        """Of each fine-tune from the base."""
        low, high = TUNE_DEVIATIONS
        return [low * (high / low) ** (i / max(1, self.tunes - 1)) for i in range(self.tunes)]

    def record(self) -> dict[str, Any]:
        """All that decides the bytes."""
        return {**asdict(self), "dtype": self.dtype.torch_name}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a tensor, at the same place in all models."""

    tensor: int
    """Position in the model; it seeds the random numbers."""
    mean: float
    file: str
    offset_bytes: int
    """Of the tensor, from the start of the file."""
    start: int
    stop: int


def is_generated(wanted: ModelSet, folder: Path) -> bool:
    """Whether `folder` holds exactly these models. Raises ConfigError if it holds anything else."""
    record = folder / RECORD
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        wrong = [f"{key} {found[key]}, not {value}" for key, value in wanted.record().items() if found[key] != value]
        if wrong:
            what = f"`{folder}` holds generated models of another kind: {'; '.join(wrong)}"
            raise ConfigError.at("--folder", what, "name another folder")
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError.at("--folder", f"`{folder}` is not empty and holds no generated models", "name a new folder")
    return False


def generate(wanted: ModelSet, folder: Path, progress: Progress = no_progress) -> list[Path]:
    """Write the models into the empty `folder`; their folders, the base first.

    Safetensors shards with an index and config.json, on the disk when this returns; no tokenizer. Takes a few blocks of
    memory per process, whatever the models' size. What was written is removed on failure. Raises RunError.
    """
    folders = wanted.folders(folder)
    try:
        with telling_write_errors(folder):
            for model in folders:
                model.mkdir()
            pieces = list(_write_skeletons(wanted, folders))
        with progress(wanted.n_bytes) as advance:
            for n_bytes in _map(partial(_fill, wanted, folders), pieces, wanted.model_bytes):
                advance(n_bytes)
        for path in [path for model in folders for path in model.iterdir()]:
            sync_file(path)  # what isn't on the disk can't be dropped from the page cache
        with telling_write_errors(folder):
            (folder / RECORD).write_text(json.dumps(wanted.record(), indent=2) + "\n", encoding="utf-8")
    except BaseException:
        for model in folders:
            shutil.rmtree(model, ignore_errors=True)
        raise
    return folders


def _map(fill: Callable[[_Piece], int], pieces: Sequence[_Piece], model_bytes: int) -> Iterator[int]:
    """Fill all pieces, in several processes where that is worth it; gives the bytes written, piece by piece."""
    if model_bytes <= SMALL_BYTES:
        yield from map(fill, pieces)
        return
    with spawned(max(1, default_workers())) as pool:
        yield from pool.map(fill, pieces)


def _write_skeletons(wanted: ModelSet, folders: Sequence[Path]) -> Iterator[_Piece]:
    """Everything but the weights, in every model folder; gives the pieces to fill."""
    shards = _group_into_shards(wanted)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = header_bytes([(name, wanted.dtype, dims) for name, dims in shard.items()])
        n_bytes = len(header) + sum(map(prod, shard.values())) * wanted.dtype.size
        for folder in folders:
            (folder / file).write_bytes(header)
            os.truncate(folder / file, n_bytes)
        yield from _pieces(shard, wanted, file, len(header), first_tensor=len(weight_map))
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": wanted.model_bytes}, "weight_map": weight_map}
    for folder in folders:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(wanted.shape.config(wanted.dtype.torch_name), indent=2) + "\n")


def _group_into_shards(wanted: ModelSet) -> list[dict[str, Dims]]:
    """Tensors in order, a new shard where the next one doesn't fit."""
    shards: list[dict[str, Dims]] = [{}]
    filled = 0
    for name, dims in wanted.shape.tensors().items():
        size = prod(dims) * wanted.dtype.size
        if shards[-1] and filled + size > wanted.shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = dims
        filled += size
    return shards


def _pieces(
    shard: dict[str, Dims], wanted: ModelSet, file: str, offset_bytes: int, first_tensor: int
) -> Iterator[_Piece]:
    for tensor, dims in enumerate(shard.values(), start=first_tensor):
        n, mean = prod(dims), float(len(dims) == 1)  # vectors are norms
        for start in range(0, n, PIECE):
            yield _Piece(tensor, mean, file, offset_bytes, start, min(start + PIECE, n))
        offset_bytes += n * wanted.dtype.size


def _fill(wanted: ModelSet, folders: Sequence[Path], piece: _Piece) -> int:
    """Draw one piece of all models and write it to its place; the bytes written. Raises RunError."""
    paths = [folder / piece.file for folder in folders]
    for start in range(piece.start, piece.stop, BLOCK):
        with used_alone(torch.device("cpu")):
            blocks = _draw(wanted, piece, start)
        for path, block in zip(paths, blocks, strict=True):
            _write(path, block.numpy().data, piece.offset_bytes + start * wanted.dtype.size)
    return (piece.stop - piece.start) * wanted.dtype.size * len(folders)


def _draw(wanted: ModelSet, piece: _Piece, start: int) -> list[torch.Tensor]:
    """The bytes of the block from `start` on, of each model."""
    dtype: torch.dtype = getattr(torch, wanted.dtype.torch_name)
    generator = torch.Generator()
    generator.manual_seed((wanted.seed * 100_003 + piece.tensor) * 1_000_003 + start // BLOCK)
    drawn = torch.empty(min(BLOCK, piece.stop - start))
    base = drawn.normal_(piece.mean, BASE_DEVIATION, generator=generator).to(dtype, copy=True)
    tunes = [drawn.normal_(0, s, generator=generator).add_(base).to(dtype, copy=True) for s in wanted.deviations()]
    return [weights.view(torch.uint8) for weights in (base, *tunes)]


def _write(path: Path, data: memoryview, offset_bytes: int) -> None:
    with telling_write_errors(path):
        file = open_to_write(str(path))
        try:
            write_at(file, data, offset_bytes)
        finally:
            os.close(file)
