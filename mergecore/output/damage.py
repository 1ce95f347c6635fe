"""What is wrong with a folder: it is compared with its manifest, structure first, then every tensor's hash."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.errors import CheckpointError, Problem
from mergecore.output.manifest import Manifest, TensorEntry, file_hash
from mergecore.stream.digests import block_count, hash_stored, tensor_digest
from mergecore.stream.journal import JOURNAL
from mergecore.stream.positional_io import open_to_read
from mergecore.stream.writer import PARTIAL


def find_damage(folder: Path, manifest: Manifest, *, threads: int, on_progress: Callable[[int], None]) -> list[Problem]:
    """All differences between a folder and its manifest. `on_progress` is told the bytes of each tensor."""
    found = [*_leftovers(folder, manifest), *_other_files(folder, manifest)]
    whole: list[tuple[TensorEntry, TensorRef]] = []
    for name, n_bytes in manifest.weights.items():
        expected = [tensor for tensor in manifest.tensors if tensor.file == name]
        try:
            tensors = _open(folder / name, n_bytes)
        except CheckpointError as error:
            found += error.problems
            continue
        found += _in_one_only(folder / name, expected, tensors)
        for tensor in expected:
            if tensor.name not in tensors:
                continue
            problem = _mislabelled(tensor, tensors[tensor.name])
            if problem is None:
                whole.append((tensor, tensors[tensor.name]))
            else:
                found.append(problem)
    return [*found, *_changed(whole, threads, on_progress)]


def _leftovers(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Files that would not be there if all had gone well."""
    for path in sorted(folder.iterdir()):
        if path.name == JOURNAL:
            hint = "give the same command again to finish it"
            yield Problem(str(path), "is left of a run that was interrupted", hint)
        elif path.suffix == PARTIAL:
            yield Problem(str(path), "is an unfinished file", "remove it if no other run is writing to this folder")
        elif path.suffix == ".safetensors" and path.name not in manifest.weights:
            yield Problem(str(path), "is not one of the weight files that were written")


def _other_files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            if file_hash(path) != expected:
                yield Problem(str(path), "is not what was written")
        except FileNotFoundError:
            yield Problem(str(path), "is missing")
        except OSError as error:
            yield Problem(str(path), f"can't be read: {error.strerror}")


def _open(path: Path, n_bytes: int) -> dict[str, TensorRef]:
    """The tensors of a weight file. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError.at(path, "is missing")
    if path.stat().st_size != n_bytes:
        raise CheckpointError.at(path, f"has {path.stat().st_size} bytes, expected {n_bytes}")
    return read_header(path)


def _in_one_only(path: Path, expected: Sequence[TensorEntry], found: dict[str, TensorRef]) -> Iterator[Problem]:
    """Tensors that are missing, and those that nobody wrote."""
    names = {tensor.name for tensor in expected}
    for name in sorted(names - found.keys()):
        yield Problem(str(path), f"lacks the tensor `{name}`")
    for name in sorted(found.keys() - names):
        yield Problem(str(path), f"has a tensor `{name}` that was not written")


def _mislabelled(expected: TensorEntry, found: TensorRef) -> Problem | None:
    if (found.dtype.value, found.shape) == (expected.dtype, expected.shape):
        return None
    what = f"`{expected.name}` is {found.dtype.value} {list(found.shape)}"
    return Problem(found.file, f"{what}, expected {expected.dtype} {list(expected.shape)}")


def _changed(
    tensors: Sequence[tuple[TensorEntry, TensorRef]], threads: int, on_progress: Callable[[int], None]
) -> Iterator[Problem]:
    """Tensors with other bytes. Threads are right: reading and hashing release the interpreter lock."""
    with ThreadPoolExecutor(threads) as pool:
        largest_first = sorted(tensors, key=lambda pair: -pair[1].n_bytes)
        for (expected, stored), found in zip(
            largest_first, pool.map(_digest, [s for _, s in largest_first]), strict=True
        ):
            on_progress(stored.n_bytes)
            if found != expected.hash:
                told = "can't be read" if found is None else f"has the hash {found}"
                yield Problem(
                    stored.file, f"the bytes of `{expected.name}` are damaged: it {told}, not {expected.hash}"
                )


def _digest(tensor: TensorRef) -> str | None:
    """Of a tensor as it is on the disk; None if it can't be read."""
    try:
        file = open_to_read(tensor.file)
    except OSError:
        return None
    try:
        blocks = range(block_count(tensor.n_bytes))
        found = hash_stored(file, tensor.offset_bytes, tensor.n_bytes, blocks)
        return tensor_digest(found, tensor.n_bytes) if len(found) == len(blocks) else None
    except OSError:
        return None
    finally:
        os.close(file)
