"""Puts everything that is asked for to every model, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mergecore.errors import CheckpointError, ConfigError
from mergecore.evaluation.loading import DTYPES, folder_problems, load
from mergecore.evaluation.scores import ModelScore
from mergecore.evaluation.tasks import TaskOptions, Tasks
from mergecore.evaluation.texts import WINDOW, continue_prompt, read_text, score_text


def evaluate(
    models: Sequence[Path],
    texts: Sequence[Path] = (),
    *,
    prompts: Sequence[str] = (),
    tasks: Sequence[str] = (),
    task_options: TaskOptions | None = None,
    window: int = WINDOW,
    max_new_tokens: int = 48,
    device: str = "auto",
    dtype: str = "float32",
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[ModelScore, ...]:
    """Score every model on every text, let it continue every prompt, and put the tasks to it.

    models: folders as transformers reads them. tasks: as `Tasks` takes them. device: as torch names it; "auto" is a GPU
    where there is one. dtype: what is computed in, one of DTYPES. tell: is given a line when a model's turn comes.
    Folders, texts and tasks are all checked before the first model is loaded. Raises MergeError.
    """
    if window < 2:
        raise ConfigError.at("", f"a window of {window} tokens predicts nothing", "2 is the least, 128 is usual")
    if dtype not in DTYPES:
        raise ConfigError.at("--dtype", f"`{dtype}` is not known", f"there are {', '.join(DTYPES)}")
    CheckpointError.raise_if_any(problem for folder in models for problem in folder_problems(folder))
    contents = [read_text(text) for text in texts]
    loaded_tasks = Tasks(tasks, task_options or TaskOptions()) if tasks else None
    found = []
    for number, folder in enumerate(models, start=1):
        tell(f"Evaluating {folder} ({number} of {len(models)})")
        model = load(folder, device, dtype, tell)
        scores = tuple(score_text(model, path, content, window) for path, content in zip(texts, contents, strict=True))
        written = tuple(continue_prompt(model, prompt, max_new_tokens) for prompt in prompts)
        found.append(ModelScore(folder, scores, written, loaded_tasks.run(model) if loaded_tasks else ()))
        del model  # before the next one is loaded: one at a time fits in memory
    return tuple(found)
