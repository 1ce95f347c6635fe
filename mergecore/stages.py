"""Merges of several stages: all planned before the first weight is read, then carried out one after the other."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import OnDownload
from mergecore.config.load import Source
from mergecore.config.stages import Stage, load_stages
from mergecore.output.folder import planned_model
from mergecore.plan.build import draw_seed
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import Plan
from mergecore.planning import build_plan
from mergecore.stream.journal import read_history


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of a merge, which is one document of its config. Most configs have just one."""

    plan: Plan
    """Its `name` is that of the stage, its `before` are the plans of the stages that it needs."""
    folder: Path
    """Where its model is written."""
    inputs: frozenset[str]
    """The names of the stages whose output it merges."""
    stays: bool
    """Whether the model is there when all is done; else it is deleted once no stage needs it any more."""


def plan_all(
    config: Source,
    out: Path,
    options: PlanOptions,
    *,
    keep_stages: Path | None,
    strict: bool,
    resume: bool,
    on_download: OnDownload,
) -> tuple[PlannedStage, ...]:
    """All stages, in the order in which they run. To `resume`, the seed is that of a run that was interrupted.

    Raises MergeError.
    """
    stages = load_stages(config, strict=strict)
    folders = list(_folders(stages, out, keep_stages))
    if options.seed is None:
        drawn_before = _drawn_before(folders) if resume else None
        options = replace(options, seed=draw_seed() if drawn_before is None else drawn_before)
    planned: dict[str | None, PlannedStage] = {}
    models: dict[str, Checkpoint] = {}
    for stage, folder in zip(stages, folders, strict=True):
        plan = build_plan(
            stage.config,
            options,
            stages=models,
            on_download=on_download,
        )
        plan = replace(plan, before=_before(stage, planned))
        planned[plan.name] = PlannedStage(
            plan, folder, frozenset(stage.inputs), stays=stage.is_result or keep_stages is not None
        )
        if plan.name is not None:
            models[plan.name] = planned_model(plan, folder)
    return tuple(planned.values())


def _folders(stages: Sequence[Stage], out: Path, keep_stages: Path | None) -> Iterator[Path]:
    """Where each stage is written: the result to `out`; if there are several, those with a name to folders in it."""
    alone = sum(stage.is_result for stage in stages) == 1
    between = temporary_folder(out) if keep_stages is None else keep_stages
    for stage in stages:
        name = stage.config.name
        if stage.is_result and (alone or name is None):
            yield out
        else:
            assert name is not None
            yield (out if stage.is_result else between) / name


def _drawn_before(folders: Sequence[Path]) -> int | None:
    seeds = (read_history(folder).identity.get("seed") for folder in folders)
    return next((seed for seed in seeds if seed is not None), None)


def temporary_folder(out: Path) -> Path:
    """Where the models between the stages lie, beside `out` and so on the same disk."""
    return out.absolute().parent / f".{out.absolute().name}.stages"


def _before(stage: Stage, planned: dict[str | None, PlannedStage]) -> tuple[Plan, ...]:
    """The stages that `stage` needs, directly or not, in the order in which they run."""
    needed: set[str | None] = set()
    for name in stage.inputs:
        needed |= {name, *(plan.name for plan in planned[name].plan.before)}
    return tuple(other.plan for name, other in planned.items() if name in needed)


def left_to_do(stages: Sequence[PlannedStage], finished: Collection[str | None]) -> list[PlannedStage]:
    """The stages that aren't finished and whose model stays or is an input of one that is left to do."""
    left: list[PlannedStage] = []
    for stage in reversed(stages):
        needed = stage.stays or any(stage.plan.name in other.inputs for other in left)
        if needed and stage.plan.name not in finished:
            left.insert(0, stage)
    return left


def discard_unneeded(stages: Sequence[PlannedStage], left: Sequence[PlannedStage]) -> None:
    """Delete the models that don't stay and are not an input of the stages that are `left`, nor one of these."""
    needed = {name for stage in left for name in (stage.plan.name, *stage.inputs)}
    for stage in stages:
        if not stage.stays and stage.plan.name not in needed:
            shutil.rmtree(stage.folder, ignore_errors=True)


def discard_all(stages: Sequence[PlannedStage], out: Path) -> None:
    """Delete all that lies between the stages, which are all done."""
    if not all(stage.stays for stage in stages):
        shutil.rmtree(temporary_folder(out), ignore_errors=True)


def discard_empty(out: Path) -> None:
    """Remove the folders of the stages and of the result if there is nothing in them."""
    for folder in (temporary_folder(out), out):
        with contextlib.suppress(OSError):
            folder.rmdir()
