"""What decides the bytes that a merge writes. A run may only go on with the work of one that had the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from xxhash import xxh3_128

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.safetensors_file import MOST_HEADER_BYTES
from mergecore.errors import CheckpointError
from mergecore.methods import plugins
from mergecore.plan.plan import Plan

DISTRIBUTION = "mergecore-triton"


def identity(plan: Plan) -> dict[str, Any]:
    """Plain data, to be compared with that of another run.

    A model that an earlier stage writes, which needn't be there, is named by what decides its bytes. The backend is
    not part of it, as it changes no bit. Raises CheckpointError if an input can't be read.
    """
    return {
        "mergecore": version(DISTRIBUTION),
        "config": _hash(plan.config),
        "seed": plan.seed,
        "shards": _hash([[shard.name, shard.n_bytes] for shard in plan.shards]),
        "plugins": plugins.loaded_hashes(),
        "inputs": {file: file_identity(file) for file in input_files(plan)},
        "stages": {str(stage.name): _hash(identity(stage)) for stage in _inputs_to_be_written(plan)},
        "plan": replace(plan, seed=None).digest,
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What has changed, for the user; None if nothing has."""
    if before.get("mergecore") != now["mergecore"]:
        return f"it was begun by mergecore {before.get('mergecore')}, and this is {now['mergecore']}"
    for part, what in (("config", "the config"), ("plugins", "a plug-in")):
        if before.get(part) != now[part]:
            return f"{what} has changed"
    if before.get("seed") != now["seed"]:
        return f"the seed was {before.get('seed')} and is {now['seed']}"
    changed = changed_inputs(before.get("inputs", {}), now["inputs"])
    if changed:
        return f"the input {changed[0]} has changed"
    if before.get("shards") != now["shards"]:
        return "the sizes of the weight files have changed"
    if before.get("stages") != now["stages"]:
        return "an earlier stage has changed"
    return None if before.get("plan") == now["plan"] else "the plan has changed"


def same_plan(before: Mapping[str, Any], plan: Plan) -> bool:
    """Whether another run had this plan, whatever its inputs and its seed were."""
    return before.get("plan") == replace(plan, seed=None).digest


def changed_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The files that are not what they were, or are only in one of the two."""
    return sorted(file for file in {*before, *now} if before.get(file) != now.get(file))


def input_files(plan: Plan) -> list[str]:
    """All files that are read, without those that an earlier stage writes."""
    written = {model.folder for model in plan.models if _stage_of(model.name) in {s.name for s in plan.before}}
    merged = (ref.file for tensor in plan.tensors for ref in tensor.on_disk)
    files = dict.fromkeys([*merged, *(plan.gates.files if plan.gates else ())])
    return [file for file in files if Path(file).parent not in written]


def file_identity(file: str) -> dict[str, Any]:
    """Size, time of the last change and, of a safetensors file, the hash of its header. Raises CheckpointError."""
    try:
        with Path(file).open("rb") as stream:
            found = os.fstat(stream.fileno())
            header = _header(stream) if file.endswith(".safetensors") else None
    except OSError as error:
        raise CheckpointError.at(file, f"can't be read: {error.strerror}") from error
    facts = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    return facts if header is None else facts | {"header": xxh3_128(header).hexdigest()}


def _header(stream: IO[bytes]) -> bytes:
    """Of a safetensors file, which begins with its length."""
    return stream.read(min(int.from_bytes(stream.read(8), "little"), MOST_HEADER_BYTES))


def _inputs_to_be_written(plan: Plan) -> Iterator[Plan]:
    """The stages whose models this one merges."""
    taken = {_stage_of(model.name) for model in plan.models}
    return (stage for stage in plan.before if stage.name in taken)


def _stage_of(model: str) -> str:
    """`chat+lora` is the stage `chat`, with an adapter."""
    return ModelReference.parse(model).path


def _hash(content: Any) -> str:
    return xxh3_128(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
