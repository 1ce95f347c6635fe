"""`mergecore eval`: how well models predict texts, and what they write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Quiet

if TYPE_CHECKING:
    from rich.table import Table

    from mergecore.evaluation import ModelScore


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
    window: Annotated[int, typer.Option(help="Tokens that are seen at once.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of what is written after a prompt.")] = 48,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, or auto.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers for a program.")] = False,
    quiet: Quiet = False,
) -> None:
    """Print the loss and perplexity of models on texts, and what they write after a prompt.

    The loss is the mean of -ln p per token, in windows that don't overlap: lower is better.
    """
    from mergecore.evaluation import evaluate

    folders, extra_texts = _split(models)
    texts = list(_text_files([*(text or ()), *extra_texts]))
    _require(folders, texts, prompt or ())
    scores = evaluate(
        folders,
        texts,
        prompts=prompt or (),
        window=window,
        max_new_tokens=max_new_tokens,
        device=device,
        tell=console.talk,
    )
    if json:
        console.data_json({"window": window, "models": [_as_json(score) for score in scores]})
        return
    if texts:
        console.data_table(_table(scores))
    for line in _continuations(scores):
        console.data(line)


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


def _require(models: Sequence[Path], texts: Sequence[Path], prompts: Sequence[str]) -> None:
    from mergecore.errors import ConfigError

    if not models:
        raise ConfigError.at("", "there is no model to evaluate", "give the folder of a model before `--text`")
    if not texts and not prompts:
        raise ConfigError.at("", "there is nothing to evaluate on", "give texts with `--text`, or a `--prompt`")


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of the texts; their paths where short ones would be the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _table(scores: Sequence[ModelScore]) -> Table:
    """Models as rows; loss and perplexity of each text and the mean loss as columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for name in _names([t.text for t in scores[0].texts]):
        table.add_column(f"{name}\nloss", justify="right")
        table.add_column("\nperplexity", justify="right")
    table.add_column("mean\nloss", justify="right", style="bold")
    for score in scores:
        cells = [cell for t in score.texts for cell in (f"{t.loss:.3f}", _significant(t.perplexity))]
        table.add_row(str(score.model), *cells, f"{score.mean_loss:.3f}")
    return table


def _significant(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _continuations(scores: Sequence[ModelScore]) -> Iterator[str]:
    """Each prompt and what the models write, as text without markup."""
    from rich.markup import escape

    for score in scores:
        for continuation in score.continuations:
            yield f"[bold]{escape(str(score.model))}[/bold]\n{escape(continuation.prompt + continuation.text)}\n"


def _as_json(score: ModelScore) -> dict[str, Any]:
    """What there is no number for (a mean of no texts, the loss of a model with NaN weights) is null."""
    return {
        "model": str(score.model),
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
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
