"""The section of a model card that tells an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from mergecore.errors import CheckpointError
from mergecore.evaluation.scores import ModelScore, TaskScore
from mergecore.output.model_card import CARD, escaped
from mergecore.output.whole_file import write_whole
from mergecore.stream.writer import telling_write_errors

_BEGIN, _END = "<!-- begin: mergecore eval -->", "<!-- end: mergecore eval -->"
"""Around the section, so that another evaluation takes its place."""


def check_card(folder: Path) -> None:
    """Raises CheckpointError if the card of a model can't take the section."""
    _around(folder)


def write_card(
    folder: Path, scores: Sequence[ModelScore], names: Sequence[str], *, window: int, dtype: str, limit: int | None
) -> None:
    """Write the section into the card of the model in `folder`, in place of an earlier one. Raises CheckpointError,
    and RunError if it can't be written.

    names: of the models, in the order of the scores; this one is called so.
    """
    before, after = _around(folder)
    rows = ["this model" if score.model == folder else escaped(name) for score, name in zip(scores, names, strict=True)]
    section = "\n".join(_section(scores, rows, window=window, dtype=dtype, limit=limit))
    with telling_write_errors(folder / CARD):
        write_whole(folder / CARD, f"{before}{_BEGIN}\n{section}\n{_END}{after}")


def _around(folder: Path) -> tuple[str, str]:
    """What stands before and after the section, or where it will be."""
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError.at(folder, f"has no {CARD}, so there is no card to write into") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError.at(path, f"can't be read: {error}") from error
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin:
        return text.rstrip("\n") + "\n\n", "\n"
    if not end:
        raise CheckpointError.at(path, f"has `{_BEGIN}` without `{_END}`", "remove it, or close the section")
    return before, after


def _section(
    scores: Sequence[ModelScore], rows: Sequence[str], *, window: int, dtype: str, limit: int | None
) -> Iterator[str]:
    yield "## Evaluation\n"
    if texts := scores[0].texts:
        names = [f"{escaped(t.text.stem)}, loss" for t in texts]
        yield from _table(
            [*names, "mean"], rows, [[*(f"{t.loss:.3f}" for t in s.texts), f"{s.mean_loss:.3f}"] for s in scores]
        )
        yield f"\nLoss: mean of -ln p per token, in windows of {window} tokens that don't overlap.\n"
    if tasks := scores[0].tasks_asked_for:
        names = [f"{escaped(t.task)}, {escaped(t.label)}" for t in tasks]
        yield from _table(names, rows, [[t.value_text for t in s.tasks_asked_for] for s in scores])
        some = "" if limit is None else f", the first {limit} examples of each task"
        yield f"\nTasks by lm-eval {version('lm_eval')}{some}; ± is the standard error. {_shots(tasks)}\n"
    yield f"Computed in {'the type that is stored' if dtype == 'auto' else dtype}."


def _table(columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| model | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    yield from (f"| {row} | {' | '.join(values)} |" for row, values in zip(rows, cells, strict=True))


def _shots(tasks: Sequence[TaskScore]) -> str:
    """How many solved examples stand in front of the questions."""
    shots = dict.fromkeys((task.task, task.shots) for task in tasks)
    return "Shots: " + ", ".join(f"{escaped(name)} {'various' if n is None else n}" for name, n in shots) + "."
