"""One run of a merge: its planned stages carried out, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergecore.moe.routers import with_routers
from mergecore.output.folder import finish_folder, is_finished, leave_folder, start_folder
from mergecore.plan.plan import Plan
from mergecore.prediction.predict import Prediction, predict_or_none
from mergecore.stages import PlannedStage, discard_all, discard_empty, discard_unneeded, left_to_do
from mergecore.stream.backend import Backend, is_cpu
from mergecore.stream.execute import Report, execute, report_of_finished
from mergecore.stream.journal import JOURNAL, Journal
from mergecore.stream.pool import Pool

_LONG_BYTES = 10_000_000_000
"""To read and to write. The time of a merge that moves more is predicted: a probe is short beside it."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what happens: see `mergecore.merge`."""

    on_progress: Callable[[int, int], None]
    on_resume: Callable[[Plan, int], None]
    on_restart: Callable[[Path, str], None]
    on_left: Callable[[Path], None]
    on_prediction: Callable[[Prediction], None]
    on_gates: Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Run:
    """How stages are carried out."""

    out: Path
    """Of the merge as a whole."""
    pool: Pool
    backend: Backend
    device: str
    """As the user names it: perhaps several."""
    memory_bytes: int
    resume: bool
    allow_nonfinite: bool
    copy_tokenizer: bool
    write_card: bool
    options: Mapping[str, Any]
    """For the manifest: what the stages were planned with."""
    tell: Listeners

    def carry_out(self, stages: Sequence[PlannedStage]) -> list[Report]:
        """Carry out what an earlier run hasn't finished; report on all stages, in their order. Raises MergeError."""
        finished = [s.plan.name for s in stages if self.resume and is_finished(s.folder, s.plan)]
        reports = {stage.plan.name: report_of_finished(stage.plan, self.backend) for stage in stages}
        reports |= self._in_turn(stages, finished)
        return [reports[stage.plan.name] for stage in stages]

    def _in_turn(self, stages: Sequence[PlannedStage], finished: Collection[str | None]) -> dict[str | None, Report]:
        """Carry out what isn't finished, and give the reports by the stages' names.

        Models in between are deleted as soon as they can be. The journals are kept until all is done: they tell a run
        that comes after an interruption which stages are whole.
        """
        reports: dict[str | None, Report] = {}
        left = left_to_do(stages, finished)
        with ExitStack() as journals:
            try:
                while left:
                    journal, reports[left[0].plan.name] = self._begun_and_ended(left[0])
                    journals.callback(journal.close)
                    left.pop(0)
                    discard_unneeded(stages, left)
            except BaseException:
                discard_empty(self.out)
                raise
            for stage in stages:
                (stage.folder / JOURNAL).unlink(missing_ok=True)
        discard_all(stages, self.out)
        return reports

    def _begun_and_ended(self, stage: PlannedStage) -> tuple[Journal, Report]:
        """One stage. If it fails, what can be gone on with is left."""
        journal = start_folder(
            stage.folder,
            stage.plan,
            resume=self.resume,
            on_restart=lambda reason: self.tell.on_restart(stage.folder, reason),
        )
        try:
            return journal, self._merged(stage, journal)
        except BaseException:
            if leave_folder(stage.folder, journal):
                self.tell.on_left(stage.folder)
            raise

    def _merged(self, stage: PlannedStage, journal: Journal) -> Report:
        is_new = not journal.has_work
        plan, notes = stage.plan, tuple[str, ...]()
        if plan.gates is not None:
            plan, notes = with_routers(plan, journal, self.device, self.tell.on_gates)
        expected = self._predicted(plan, stage.folder) if is_new else None
        report = execute(
            plan,
            stage.folder,
            self.pool,
            workers=self.pool.workers,
            backend=self.backend,
            memory_bytes=self.memory_bytes,
            allow_nonfinite=self.allow_nonfinite,
            on_progress=self.tell.on_progress,
            on_resume=lambda n_bytes: self.tell.on_resume(plan, n_bytes),
            journal=journal,
        )
        report = replace(
            report,
            notes=(*notes, *report.notes),
            predicted_seconds=None if expected is None else round(expected.running_s, 1),
        )
        finish_folder(
            stage.folder,
            plan,
            report,
            journal,
            options=self.options,
            copy_tokenizer=self.copy_tokenizer,
            write_card=self.write_card,
        )
        return report

    def _predicted(self, plan: Plan, folder: Path) -> Prediction | None:
        """The time of a long merge, which the user is told."""
        if plan.passes_bytes + plan.write_bytes <= _LONG_BYTES:
            return None
        expected = predict_or_none(
            plan,
            folder,
            self.pool,
            memory_bytes=self.memory_bytes,
            backend=self.backend,
            on_gpus=not is_cpu(self.device),
        )
        if expected is not None:
            self.tell.on_prediction(expected)
        return expected
