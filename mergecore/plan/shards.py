"""Which weight file each output tensor goes into, and where in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mergecore.checkpoint.safetensors_file import header_bytes
from mergecore.plan.plan import OutputTensor, Shard


def assign_shards(
    tensors: Sequence[OutputTensor], shard_bytes: int, stem: str
) -> tuple[tuple[OutputTensor, ...], tuple[Shard, ...]]:
    """Fill files of at most `shard_bytes` of tensors, in order; a tensor larger than that gets a file of its own.

    The names of the files begin with `stem`. Within a file, wider element types come first, so that each tensor is
    aligned to its type.
    """
    groups = [sorted(group, key=lambda t: -t.dtype.size) for group in _group(tensors, shard_bytes)]
    placed: list[OutputTensor] = []
    shards: list[Shard] = []
    for index, group in enumerate(groups):
        header = header_bytes([(t.name, t.dtype, t.shape) for t in group])
        offset = len(header)
        for tensor in group:
            placed.append(replace(tensor, shard=index, offset_bytes=offset))
            offset += tensor.n_bytes
        shards.append(Shard(_name(stem, index, len(groups)), header, offset))
    return tuple(placed), tuple(shards)


def _group(tensors: Sequence[OutputTensor], shard_bytes: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = []
    filled = 0
    for tensor in tensors:
        if not groups or filled + tensor.n_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.n_bytes
    return groups


def _name(stem: str, index: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"
