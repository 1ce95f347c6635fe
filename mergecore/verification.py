"""Verifies what was written: that a folder is still the same, and that a sample of a merged model comes out again."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergecore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.load import load
from mergecore.errors import CheckpointError, ConfigError, MergeError, Problem
from mergecore.methods import plugins
from mergecore.output.damage import find_damage
from mergecore.output.manifest import MANIFEST, Manifest, read_manifest
from mergecore.plan.gates import with_gates
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import OutputTensor, Plan
from mergecore.plan.shards import assign_shards
from mergecore.planning import build_plan
from mergecore.stream.execute import Report
from mergecore.stream.identity import file_identity, identity
from mergecore.stream.journal import Journal
from mergecore.stream.writer import prepare_partial_files

_GROUP_BYTES = 2_000_000_000
"""Of tensors that are merged again before they are compared and removed."""

Execute = Callable[[Plan, Path, Journal], Report]
"""Carries a plan out in a folder."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found."""

    folder: Path
    files: int
    """Weight files."""
    tensors: int
    n_bytes: int
    """Of all weight files."""
    seconds: float
    """That reading and hashing them took."""
    problems: tuple[Problem, ...]
    """Empty: all is as it was written."""
    recomputed: tuple[str, ...]
    """Tensors that were merged again, from the inputs."""
    notes: tuple[str, ...]
    """What the user should know, though it is no difference."""

    @property
    def passed(self) -> bool:
        """Whether the folder is whole and all that was merged again has the same bits."""
        return not self.problems


def verify_folder(
    folder: Path,
    *,
    threads: int,
    recompute: float,
    execute: Execute,
    on_begin: Callable[[int], None],
    on_progress: Callable[[int], None],
) -> Verification:
    """Compare a folder with its manifest; merge a share `recompute` of its bytes again, if that isn't zero.

    `on_begin` is told the bytes that will be hashed, `on_progress` those of each tensor. Raises CheckpointError if
    there is no manifest that can be read, ConfigError if an adapter's bytes shall be merged again.
    """
    began = time.monotonic()
    manifest = read_manifest(folder)
    if recompute and manifest.is_adapter:
        what = f"{folder} is a LoRA adapter, and only merges of models can be merged again"
        raise ConfigError.at("--recompute", what, "without it, files and hashes are compared")
    n_bytes = sum(manifest.weights.values())
    on_begin(n_bytes)
    problems = find_damage(folder, manifest, threads=threads, on_progress=on_progress)
    seconds = time.monotonic() - began
    recomputed: list[str] = []
    notes: list[str] = []
    if recompute:
        try:
            changed, notes = _changed_inputs(manifest)
            problems += changed.values()
            recomputed, different = _recompute(manifest, recompute, set(changed), execute)
            problems += [Problem(str(folder / file), what) for file, what in different]
        except MergeError as error:
            problems += error.problems
    return Verification(
        folder,
        files=len(manifest.weights),
        tensors=len(manifest.tensors),
        n_bytes=n_bytes,
        seconds=seconds,
        problems=tuple(problems),
        recomputed=tuple(recomputed),
        notes=tuple(notes),
    )


def _changed_inputs(manifest: Manifest) -> tuple[dict[str, Problem], list[str]]:
    """The inputs that are not what they were, and notes on those that may not be."""
    changed: dict[str, Problem] = {}
    notes = []
    for file, before in manifest.inputs.items():
        try:
            now = file_identity(file)
        except CheckpointError as error:
            changed[file] = replace(error.problems[0], hint="it is an input of the merge")
            continue
        if {**now, "mtime_ns": 0} != {**before, "mtime_ns": 0}:
            changed[file] = Problem(file, "has changed since the merge, so what came from it can't be merged again")
        elif now != before:
            notes.append(f"{file} was written again since the merge, with the same header")
    return changed, notes


def _recompute(
    manifest: Manifest, share: float, changed: set[str], execute: Execute
) -> tuple[list[str], list[tuple[str, str]]]:
    """The tensors that were merged again, and (file, difference) of those that came out otherwise."""
    expected = {tensor.name: tensor for tensor in manifest.tensors}
    plan = _plan(manifest)
    possible = [t for t in plan.tensors if not changed & {ref.file for ref in t.on_disk}]
    sample = _sample(possible, share * sum(tensor.n_bytes for tensor in plan.tensors))
    different = []
    for group in _groups(sample):
        for name, found in _merge_again(plan, group, manifest, execute).items():
            if name not in expected:
                different.append((MANIFEST, f"does not name `{name}`, which the inputs give"))
            elif found != expected[name].hash:
                what = f"`{name}` comes out otherwise when it is merged again: {found}, not {expected[name].hash}"
                different.append((expected[name].file, what))
    return [tensor.name for tensor in sample], different


def _plan(manifest: Manifest) -> Plan:
    """Of the merge that wrote the manifest: of its last stage, if there were several. Raises MergeError."""
    options = manifest.content["options"]
    # Code is never run because a manifest names it, which may be a stranger's.
    if options["plugins"] and not plugins.loaded_files():
        named = ", ".join(options["plugins"])
        raise CheckpointError.at(
            MANIFEST, f"the merge ran the plug-in {named}", "name it with --plugin, if you trust it"
        )
    models: dict[str, Checkpoint] = {}
    for model in manifest.content["models"]:
        folder = Path(model["folder"])
        if not folder.exists():
            raise CheckpointError.at(
                folder,
                f"is gone: the model {model['name']} was there, so nothing can be merged again",
                "a model between two stages is kept by `mergecore merge --keep-stages`",
            )
        models[ModelReference.parse(model["name"]).path] = open_checkpoint(folder)
    return build_plan(
        load(manifest.content["config"][-1]),
        PlanOptions(
            seed=manifest.content["seed"],
            allow_crimes=options["allow_crimes"],
            tensors=options["tensors"],
            truncate_embeddings=options.get("truncate_embeddings", False),
        ),
        stages=models,
    )


def _sample(tensors: Sequence[OutputTensor], n_bytes: float) -> list[OutputTensor]:
    """Some of the tensors, drawn at random, of so many bytes or a little more."""
    sample: list[OutputTensor] = []
    for tensor in random.sample(tensors, len(tensors)):
        if sum(other.n_bytes for other in sample) >= n_bytes:
            break
        sample.append(tensor)
    return sample


def _groups(tensors: Sequence[OutputTensor]) -> Iterator[list[OutputTensor]]:
    """Of so many bytes each, or of one tensor that has more."""
    group: list[OutputTensor] = []
    for tensor in tensors:
        if group and sum(t.n_bytes for t in (*group, tensor)) > _GROUP_BYTES:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _merge_again(plan: Plan, tensors: Sequence[OutputTensor], manifest: Manifest, execute: Execute) -> dict[str, str]:
    """The digests of the tensors, which are written into a temporary folder on the way."""
    placed, shards = assign_shards(tensors, _GROUP_BYTES, "again")
    part = replace(plan, tensors=placed, shards=shards)
    with tempfile.TemporaryDirectory(prefix="mergecore-verify-") as name:
        prepare_partial_files(Path(name), shards)
        journal = Journal(Path(name))
        journal.restart(identity(part))
        found = manifest.content["survey"]
        if plan.surveyed or plan.gates:  # a sample can't be surveyed again, since a survey looks at all tensors
            journal.add_survey(found)
        if plan.gates:
            part = with_gates(part, found)
        try:
            return dict(execute(part, Path(name), journal).digests)
        finally:
            journal.close()
