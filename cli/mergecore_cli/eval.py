"""`mergecore eval`: how well models predict texts, what they write, and how they do on tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Quiet

if TYPE_CHECKING:
    from rich.table import Table

    from mergecore.evaluation.scores import ModelScore


def eval_(
    models: Annotated[list[Path], typer.Argument(help="The folders of the models.", metavar="MODEL...")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Texts to predict: *.txt files, several after one --text, or folders of them."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A text for the models to continue; may be repeated."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-eval by name (mmlu, gsm8k), files of tasks (sums.yaml), or folders of them (./tasks).",
            metavar="NAME,...",
        ),
    ] = None,
    with_inputs: Annotated[
        bool, typer.Option("--with-inputs", help="Evaluate what the models were merged from, too.")
    ] = False,
    window: Annotated[int, typer.Option(help="Tokens of a text that are seen at once.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of what is written after a prompt.")] = 48,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Solved examples in front of each question of a task.", show_default="the task's"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first examples of each task only.", show_default="all")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of tasks that are computed at once.")] = 1,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put the questions of tasks into the models' chat templates.")
    ] = False,
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code", help="Agree to tasks that run what the model writes, or scripts from the Hub."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="What to compute in: float32, bfloat16, float16, or auto, as it is stored.")
    ] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers for a program.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw a bar chart.", metavar="FILE.png|FILE.svg")] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the results into the cards (README.md) of the merged models.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Print the loss of models on texts, what they write after a prompt, and their scores on the tasks of lm-eval.

    The loss is the mean of -ln p per token, in windows that don't overlap: lower is better.
    """
    from mergecore.diagnostics.choices import require_plotting
    from mergecore.evaluation.card import check_card, write_card
    from mergecore.evaluation.chart import draw_scores
    from mergecore.evaluation.evaluate import evaluate
    from mergecore.evaluation.tasks import TaskOptions
    from mergecore.output.model_card import CARD

    given, extra_texts = _split(models)
    texts = list(_text_files([*(text or ()), *extra_texts]))
    task_names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    _require(given, texts, prompt or (), task_names)
    if plot is not None:
        _require_numbers("--plot", texts, task_names)
        require_plotting(plot)
    if card:
        _require_numbers("--card", texts, task_names)
    cards = _merged(given, "--card") if card else []
    for folder in cards:
        check_card(folder)
    names = {folder: str(folder) for folder in given}
    if with_inputs:
        names |= _inputs(given)
    options = TaskOptions(
        shots=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        chat_template=apply_chat_template,
        run_unsafe_code=confirm_run_unsafe_code,
        show_progress=console.shows_progress(),
    )
    scores = evaluate(
        list(names),
        texts,
        prompts=prompt or (),
        tasks=task_names,
        task_options=options,
        window=window,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        tell=console.talk,
    )
    labels = list(names.values())
    if json:
        console.data_json({"window": window, "models": [_as_json(s, n) for s, n in zip(scores, labels, strict=True)]})
    else:
        _print(scores, labels)
    if plot is not None:
        draw_scores(scores, labels, plot)
        console.talk(f"Wrote {plot}")
    for folder in cards:
        write_card(folder, scores, labels, window=window, dtype=dtype, limit=limit)
        console.talk(f"Wrote the results into {folder / CARD}")


def _split(arguments: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Models and texts: of `--text *.txt` the shell makes several files, and only the first belongs to the option."""
    models: list[Path] = []
    texts: list[Path] = []
    for path in arguments:
        (texts if path.suffix == ".txt" and not path.is_dir() else models).append(path)
    return models, texts


def _text_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are, folders as the *.txt in them."""
    from mergecore.errors import ConfigError

    for path in paths:
        inside = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError.at(path, "there is no *.txt file in this folder")
        yield from inside


def _require(models: Sequence[Path], texts: Sequence[Path], prompts: Sequence[str], tasks: Sequence[str]) -> None:
    from mergecore.errors import ConfigError

    if not models:
        raise ConfigError.at("", "there is no model to evaluate", "give the folder of a model before `--text`")
    if not texts and not prompts and not tasks:
        hint = "give texts with `--text`, a `--prompt`, or tasks with `--tasks`"
        raise ConfigError.at("", "there is nothing to evaluate on", hint)


def _require_numbers(option: str, texts: Sequence[Path], tasks: Sequence[str]) -> None:
    from mergecore.errors import ConfigError

    if not texts and not tasks:
        raise ConfigError.at(
            option, "there are no numbers to show", "give texts with `--text`, or tasks with `--tasks`"
        )


def _merged(models: Sequence[Path], option: str) -> list[Path]:
    """The models that mergecore wrote. Raises ConfigError if there is none."""
    from mergecore.errors import ConfigError
    from mergecore.output.manifest import MANIFEST

    merged = [folder for folder in models if (folder / MANIFEST).exists()]
    if not merged:
        raise ConfigError.at(option, f"none of the models was written by mergecore: no folder has a {MANIFEST}")
    return merged


def _inputs(models: Sequence[Path]) -> dict[Path, str]:
    """The folders of what the models were merged from, with their names; those that are among the models left out."""
    from mergecore.evaluation.inputs import inputs_of

    there = {folder.resolve() for folder in models}
    names: dict[Path, str] = {}
    for folder in _merged(models, "--with-inputs"):
        inputs, problems = inputs_of(folder)
        for problem in problems:
            console.warn(str(problem))
        names |= {one.folder: one.name for one in inputs if one.folder.resolve() not in there}
    return names


def _print(scores: Sequence[ModelScore], names: Sequence[str]) -> None:
    """A table for the texts and one for the tasks, then what was written."""
    if scores[0].texts:
        console.data_table(_text_table(scores, names))
    if scores[0].tasks:
        console.data_table(_task_table(scores, names))
    for line in _continuations(scores, names):
        console.data(line)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Of the texts; their paths where short ones would be the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _text_table(scores: Sequence[ModelScore], names: Sequence[str]) -> Table:
    """Models as rows; loss and perplexity of each text and the mean loss as columns."""
    table = _table_of_models()
    for name in _short_names([t.text for t in scores[0].texts]):
        table.add_column(f"{name}\nloss", justify="right")
        table.add_column("\nperplexity", justify="right")
    table.add_column("mean\nloss", justify="right", style="bold")
    for score, name in zip(scores, names, strict=True):
        cells = [cell for t in score.texts for cell in (f"{t.loss:.3f}", _significant(t.perplexity))]
        table.add_row(name, *cells, f"{score.mean_loss:.3f}")
    return table


def _task_table(scores: Sequence[ModelScore], names: Sequence[str]) -> Table:
    """Models as rows; the metrics of the tasks that were asked for as columns, with their standard errors."""
    table = _table_of_models()
    for task in scores[0].tasks_asked_for:
        table.add_column(f"{task.task}\n{task.label}", justify="right")
    for score, name in zip(scores, names, strict=True):
        table.add_row(name, *(task.value_text for task in score.tasks_asked_for))
    return table


def _table_of_models() -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    return table


def _significant(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _continuations(scores: Sequence[ModelScore], names: Sequence[str]) -> Iterator[str]:
    """Each prompt and what the models write, as text without markup."""
    from rich.markup import escape

    for score, name in zip(scores, names, strict=True):
        for continuation in score.continuations:
            yield f"[bold]{escape(name)}[/bold]\n{escape(continuation.prompt + continuation.text)}\n"


def _as_json(score: ModelScore, name: str) -> dict[str, Any]:
    """What there is no number for (a mean of no texts, the loss of a model with NaN weights) is null."""
    return {
        "model": name,
        "mean_loss": _finite(score.mean_loss),
        "texts": [
            {
                "text": str(t.text),
                "tokens": t.tokens,
                "loss": _finite(t.loss),
                "perplexity": _finite(t.perplexity),
            }
            for t in score.texts
        ],
        "continuations": [{"prompt": c.prompt, "text": c.text} for c in score.continuations],
        "tasks": [asdict(t) | {"value": _finite(t.value), "stderr": _finite(t.stderr)} for t in score.tasks],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
