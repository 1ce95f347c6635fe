"""What is found out about a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TextScore:
    """How well one model predicts one text."""

    text: Path
    tokens: int
    """Predicted ones: the first of each window is not."""
    loss: float
    """Mean of -ln p over the predicted tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that can't be written as a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model writes after a prompt."""

    prompt: str
    text: str
    """The new part alone."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task or group of tasks."""

    task: str
    metric: str
    """`acc`, `exact_match`, ..."""
    filter: str
    """What was taken of the model's answer, by lm-eval's name; `none` if all of it."""
    value: float
    stderr: float | None
    """None where lm-eval knows none."""
    higher_is_better: bool | None
    examples: int
    shots: int | None
    """Solved examples in front of each question; None where the tasks of a group differ."""
    asked_for: bool
    """By name; otherwise it is part of a group that was."""

    @property
    def label(self) -> str:
        """The metric, with the filter if there is one."""
        return self.metric if self.filter == "none" else f"{self.metric}, {self.filter}"

    @property
    def value_text(self) -> str:
        """`0.512 ± 0.010`: the value with its standard error, if there is one."""
        return f"{self.value:.3f}" if self.stderr is None else f"{self.value:.3f} ± {self.stderr:.3f}"


@dataclass(frozen=True, slots=True)
class ModelScore:
    """All that was asked of one model."""

    model: Path
    texts: tuple[TextScore, ...]
    """In the order of the texts asked for."""
    continuations: tuple[Continuation, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    """In the order of the tasks asked for; the parts of a group come after it."""

    @property
    def tasks_asked_for(self) -> list[TaskScore]:
        """Without the parts of groups: what a table shows."""
        return [task for task in self.tasks if task.asked_for]

    @property
    def mean_loss(self) -> float:
        """Mean over the texts, each with the same share. NaN where there are none."""
        return sum(t.loss for t in self.texts) / len(self.texts) if self.texts else math.nan
