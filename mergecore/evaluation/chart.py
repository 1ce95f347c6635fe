"""The chart of an evaluation: models side by side, for each text and each task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergecore.evaluation.scores import ModelScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUP = 0.8
"""The width of the bars of a text or a task, all models together; between two groups it is 1."""


def draw_scores(scores: Sequence[ModelScore], names: Sequence[str], path: Path) -> None:
    """A bar per model, in a group for each text (its loss) and each metric of a task (with its standard error).

    names: of the models, in the order of the scores. The parts of a group of tasks aren't drawn.
    """
    from matplotlib.figure import Figure

    shown = [score.tasks_asked_for for score in scores]
    panels = bool(scores[0].texts) + bool(shown[0])
    figure = Figure(figsize=(9.5, 1 + 4 * panels), layout="constrained")
    axes = iter(figure.subplots(panels, squeeze=False)[:, 0])
    if scores[0].texts:
        panel = next(axes)
        _bars(panel, [t.text.stem for t in scores[0].texts], [[t.loss for t in score.texts] for score in scores], names)
        panel.set_ylabel("loss (lower is better)")
    if shown[0]:
        panel = next(axes)
        labels = [f"{t.task}\n{t.label}" for t in shown[0]]
        errors = [[t.stderr or 0 for t in tasks] for tasks in shown]
        _bars(panel, labels, [[t.value for t in tasks] for tasks in shown], names, errors)
        panel.set_ylabel("score, with its standard error")
    figure.legend(*panel.get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)


def _bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[Sequence[float]],
    names: Sequence[str],
    errors: Sequence[Sequence[float]] | None = None,
) -> None:
    """Groups of bars. values, errors: [model][group]."""
    width = _GROUP / len(names)
    for i, name in enumerate(names):
        left = [group - _GROUP / 2 + i * width for group in range(len(labels))]
        bars = axes.bar(left, values[i], width, align="edge", label=name, yerr=errors and errors[i], capsize=2)
        axes.bar_label(bars, fmt="%.3f", fontsize="x-small", padding=2)
    axes.set_xticks(range(len(labels)), labels, fontsize="small")
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
