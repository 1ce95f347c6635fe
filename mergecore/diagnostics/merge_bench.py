"""How fast merges are from disk to disk: whole processes, on generated checkpoints, beside the floor and mergekit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import yaml

from mergecore.api import plan
from mergecore.checkpoint.dtypes import Dtype
from mergecore.diagnostics.environment import look_around
from mergecore.diagnostics.merge_bench_configs import config_for
from mergecore.diagnostics.merge_bench_floor import Floor, start_floor
from mergecore.diagnostics.merge_bench_models import ModelSet, Progress, no_progress
from mergecore.diagnostics.merge_bench_place import generated_models, output_folder, tiny_models
from mergecore.diagnostics.merge_bench_report import MergeBenchReport, MergeTiming
from mergecore.diagnostics.merge_bench_tools import Tool, mergecore_tool, mergekit_tool
from mergecore.diagnostics.process_tree import Usage, require_measuring
from mergecore.errors import RunError
from mergecore.methods import Method, get
from mergecore.plan.plan import Plan
from mergecore.prediction.page_cache import drop, require_dropping, warm
from mergecore.stream.pool import default_workers

METHODS = (
    "passthrough", "linear", "task_arithmetic", "slerp", "karcher", "model_stock", "ties", "dare_linear", "dare_ties",
)  # fmt: skip
"""Timed unless others are named."""
ROUNDS = 3


def time_merges(
    models: ModelSet,
    *,
    methods: Sequence[str] = (),
    rounds: int = ROUNDS,
    workers: int | None = None,
    cold: bool = False,
    against: Path | None = None,
    out: Path | None = None,
    folder: Path | None = None,
    keep: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> MergeBenchReport:
    """Time merges of `models` by each of `methods` (METHODS, unless named), one program at a time.

    workers: processes of a merge, one per core unless said otherwise. cold: drop the inputs from the page cache before
    each run, instead of reading them into it. against: a Python interpreter whose mergekit merges by the same configs.
    out: where outputs are written for a while. folder: where the models are, or are made; they are removed unless they
    were there or `keep`. tell: is given a line per round and per result. progress: of generating the models.

    Raises ConfigError for a method that there is not, or that needs more models; RunError if a program, a folder or the
    room for it is missing, and if a merge fails. Where mergekit fails, the report says so.
    """
    require_measuring()
    if cold:
        require_dropping()
    chosen = [get(name, "--method") for name in methods or METHODS]
    for method in chosen:
        config_for(method, models.folders(Path()), models.dtype)  # fails before models are generated
    mergekit = mergekit_tool(against) if against is not None else None
    count = workers or max(1, default_workers())
    with (
        output_folder(out) as outputs,
        generated_models(models, folder, outputs, keep, tell, progress) as folders,
        start_floor(count) as floor,
    ):
        bench = _Bench(
            models=folders,
            tiny=tiny_models(models, outputs),
            dtype=models.dtype,
            outputs=outputs,
            floor=floor,
            mergecore=mergecore_tool(count),
            mergekit=mergekit,
            prepare=drop if cold else warm,
            tell=tell,
        )
        timings = tuple(bench.time(method, rounds) for method in chosen)
    return MergeBenchReport(
        environment=look_around(),
        models=models,
        cold=cold,
        workers=count,
        rounds=rounds,
        mergekit=mergekit.name if mergekit else None,
        timings=timings,
        skipped=tuple(bench.skipped),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One merge, for any tool."""

    config: Path
    inputs: list[list[Path]]
    """The weight files of each model."""
    plan: Plan


@dataclass(slots=True)
class _Bench:
    """All that is needed for timing one method after the other."""

    models: Sequence[Path]
    tiny: Sequence[Path]
    dtype: Dtype
    outputs: Path
    floor: Floor
    mergecore: Tool
    mergekit: Tool | None
    prepare: Callable[[Iterable[Path]], None]
    """Puts the inputs into the page cache or out of it."""
    tell: Callable[[str], None]
    skipped: list[str] = field(default_factory=list)

    def time(self, method: Method, rounds: int) -> MergeTiming:
        """Start-up, floor, merge and mergekit's merge in turn, as often as there are rounds."""
        tiny, job = self._job(method, self.tiny), self._job(method, self.models)
        startups, floors, merges, mergekits = [], [], [], []
        mergekit = self.mergekit
        for number in range(1, rounds + 1):
            self.tell(f"Timing {method.name} ({number} of {rounds})")
            startups.append(self._run(self.mergecore, tiny))
            floors.append(self._copy(job))
            merges.append(self._merge(self.mergecore, job))
            if mergekit is not None:
                try:
                    mergekits.append(self._merge(mergekit, job))
                except RunError as error:
                    self.skipped.append(f"{method.name}: {error}")
                    mergekit = None
        timing = MergeTiming(
            method=method.name,
            models=len(job.inputs),
            read_bytes=job.plan.read_bytes,
            write_bytes=job.plan.write_bytes,
            startup_runs=tuple(startups),
            merge_runs=tuple(merges),
            floor_runs=tuple(floors),
            mergekit_runs=tuple(mergekits),
        )
        self.tell(
            f"{method.name} took {timing.seconds:.2f} s, beyond start-up {timing.times_floor:.1f} times the floor"
        )
        return timing

    def _job(self, method: Method, models: Sequence[Path]) -> _Job:
        content = config_for(method, models, self.dtype)
        config = self.outputs / f"{models[0].parent.name}-{method.name}.yml"
        config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        planned = plan(content)
        return _Job(config, [sorted(model.folder.glob("*.safetensors")) for model in planned.models], planned)

    def _merge(self, tool: Tool, job: _Job) -> Usage:
        self.prepare(chain(*job.inputs))
        return self._run(tool, job)

    def _run(self, tool: Tool, job: _Job) -> Usage:
        return tool.merge(job.config, self.outputs / "merged", job.plan.write_bytes)

    def _copy(self, job: _Job) -> float:
        self.prepare(chain(*job.inputs))
        out = self.outputs / "copied"
        try:
            return self.floor.seconds(job.inputs, out)
        finally:
            shutil.rmtree(out, ignore_errors=True)
