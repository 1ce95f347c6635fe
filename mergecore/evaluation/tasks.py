"""The tasks of lm-eval: MMLU, GSM8K and some thousand others by their names there, and local files of tasks.

lm-eval asks a model that is loaded already; seeds and everything else are those of its own command, so the numbers are
the same. Its data come from the Hub, unless a local task names local files.

Some tasks run programs on this machine: what the model writes (HumanEval), or a metric that is a script on the Hub.
They are refused unless the user has agreed to that. What local task files name with `!function` is run, as it is the
user's own.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from mergecore.errors import ConfigError, EvaluationError
from mergecore.evaluation.loading import LoadedModel, first_line, not_installed, quiet
from mergecore.evaluation.scores import TaskScore

_PYTHON_SEED, _OTHER_SEED = 0, 1234
"""Those of lm-eval's command."""
_SUFFIX = ".yaml"
"""Of task files."""
_CONSENT = (
    "--confirm-run-unsafe-code allows it, with HF_ALLOW_CODE_EVAL=1 in the environment: in a container or a virtual "
    "machine, where it can do no harm"
)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How tasks are run."""

    shots: int | None = None
    """Solved examples in front of each question; None: as many as the task says."""
    limit: int | None = None
    """Of the examples of each task; None: all."""
    batch_size: int = 1
    chat_template: bool = False
    """Whether questions are put into the model's chat template."""
    run_unsafe_code: bool = False
    """Whether the user has agreed that programs are run which the model writes, or scripts from the Hub."""
    show_progress: bool = False


class Tasks:
    """Tasks with their data, ready to be put to one model after the other. lm-eval has no types, hence the Any."""

    def __init__(self, names: Sequence[str], options: TaskOptions) -> None:
        """names: lm-eval's, files of tasks, or folders of them, which contain a slash.

        Raises ConfigError for a name that lm-eval doesn't know, EvaluationError if tasks can't be loaded.
        """
        self._options = options
        self._lm_eval: Any = _import_lm_eval()
        self._asked_for: list[Any] = []
        with _others_talk(options.show_progress):
            manager = self._manager(names)
            for name in dict.fromkeys(names):
                with _scripts(options.run_unsafe_code, name):
                    self._asked_for += _find(manager, name)
            with _explained("--tasks", "lm-eval can't run these together"):  # a group and a part of it, for one
                self._loaded = manager.load(self._asked_for)
        for name, task in self._loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) and not options.run_unsafe_code:
                raise EvaluationError.at(name, "runs programs on this machine that the model writes", _CONSENT)
            _set_shots(task, options.shots)

    def run(self, model: LoadedModel) -> tuple[TaskScore, ...]:
        """Raises EvaluationError."""
        options, lm_eval = self._options, self._lm_eval
        with (
            _others_talk(options.show_progress),
            _scripts(options.run_unsafe_code, model.folder),
            _explained(model.folder, "lm-eval can't run the tasks on it"),
            quiet(),
        ):
            _set_seeds(self._loaded["tasks"].values())
            network = lm_eval.models.huggingface.HFLM(
                pretrained=model.network, tokenizer=model.tokenizer, batch_size=options.batch_size
            )
            found = lm_eval.evaluator.evaluate(
                network,
                self._loaded,
                limit=options.limit,
                log_samples=False,
                apply_chat_template=options.chat_template,
                fewshot_as_multiturn=options.chat_template,
                confirm_run_unsafe_code=options.run_unsafe_code,
            )
        return tuple(score for name, asked in self._order() for score in _scores(found, name, asked))

    def _manager(self, names: Sequence[str]) -> Any:
        """lm-eval's index of tasks. Its own thousands, which take seconds to read, are left out if not asked for."""
        folders = [str(Path(name).resolve()) for name in names if _is_folder(name)]
        own = not all(_is_local(name) for name in names)
        return self._lm_eval.tasks.TaskManager(include_path=folders, include_defaults=own)

    def _order(self) -> Iterator[tuple[str, bool]]:
        """The names of what has scores, and whether it was asked for. If a group has none, its parts stand for it."""
        for item in self._asked_for:
            if not _is_group(item):
                yield item.task_name, True
                continue
            yield item.name, True
            for part in item.get_all_groups():
                yield part.name, False
            for part in item.get_all_tasks():
                yield part.task_name, not item.has_aggregation


def _import_lm_eval() -> Any:
    try:
        for module in ("lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface"):
            importlib.import_module(module)
    except ImportError as error:
        raise not_installed("running tasks", error) from error
    return sys.modules["lm_eval"]


def _is_folder(name: str) -> bool:
    return _is_local(name) and not name.endswith(_SUFFIX)


def _is_local(name: str) -> bool:
    """Whether it is a path: no name of lm-eval looks like one."""
    return name.endswith(_SUFFIX) or "/" in name or "\\" in name


def _find(manager: Any, name: str) -> list[Any]:
    """The tasks and groups that a name or a path means, with their data. Raises MergeError."""
    if _is_folder(name):
        return _in_folder(manager, name)
    if _is_local(name):
        if not Path(name).is_file():
            raise ConfigError.at("--tasks", f"there is no file `{name}`")
    elif name not in manager.task_index:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean `{close[0]}`?" if close else "`lm-eval ls tasks` lists them"
        raise ConfigError.at("--tasks", f"lm-eval has no task `{name}`", hint)
    return _load(manager, name)


def _in_folder(manager: Any, name: str) -> list[Any]:
    """The groups in a folder, and the tasks that belong to none of them."""
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise ConfigError.at("--tasks", f"there is no folder `{name}`")
    inside = [key for key, entry in manager.task_index.items() if entry.yaml_path and folder in entry.yaml_path.parents]
    if not inside:
        raise ConfigError.at("--tasks", f"there is no task in the folder `{name}`", f"tasks are *{_SUFFIX} files")
    found = [item for key in inside for item in _load(manager, key)]
    groups = [item for item in found if _is_group(item)]
    parts = {part.name for group in groups for part in group.get_all_groups()}
    parts |= {part.task_name for group in groups for part in group.get_all_tasks()}
    return [item for item in found if (item.name if _is_group(item) else item.task_name) not in parts]


def _load(manager: Any, name: str) -> list[Any]:
    """A group, or a task, or the tasks of a tag. Raises EvaluationError."""
    with _explained(name, "lm-eval can't load it"):
        loaded = manager.load([name])
    groups = list(loaded.get("groups", {}).values())
    return groups[:1] or list(loaded["tasks"].values())


def _is_group(item: Any) -> bool:
    return hasattr(item, "get_all_tasks")


def _set_shots(task: Any, shots: int | None) -> None:
    """A task that says 0 itself can't have any."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)


def _set_seeds(tasks: Any) -> None:
    import numpy
    import torch

    random.seed(_PYTHON_SEED)
    numpy.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    for task in tasks:
        task.set_fewshot_seed(seed=_OTHER_SEED)


def _scores(found: Any, name: str, asked_for: bool) -> Iterator[TaskScore]:
    """The metrics of one task or group, which lm-eval calls `metric,filter`."""
    facts = found["results"].get(name, {})
    for key, value in facts.items():
        metric, comma, filter_ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        stderr = facts.get(f"{metric}_stderr,{filter_}")
        yield TaskScore(
            name,
            metric,
            filter_,
            float(value),
            stderr=float(stderr) if isinstance(stderr, Real) else None,
            higher_is_better=found["higher_is_better"].get(name, {}).get(metric),
            examples=int(facts["sample_len"]),
            shots=found["n-shot"].get(name),
            asked_for=asked_for,
        )


@contextlib.contextmanager
def _explained(where: object, what: str) -> Iterator[None]:
    """Any error as one of ours. Tasks are programs of many authors, which may raise anything."""
    try:
        yield
    except EvaluationError:
        raise
    except Exception as error:
        if "HF_ALLOW_CODE_EVAL" in str(error):
            raise EvaluationError.at(where, "runs programs that the model writes", _CONSENT) from error
        hint = "the data of lm-eval's own tasks come from the Hub" if isinstance(error, OSError) else ""
        raise EvaluationError.at(where, f"{what}: {first_line(error)}", hint) from error


@contextlib.contextmanager
def _scripts(allowed: bool, where: object) -> Iterator[None]:
    """Unless they are allowed, inside the block no metric is loaded that is a script from the Hub."""
    evaluate: Any = importlib.import_module("evaluate")
    refused: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise ImportError(f"the metric `{path}` is a script from the Hub")

    load: Callable[..., Any] = evaluate.load
    evaluate.load = load if allowed else refuse
    try:
        yield
    except Exception as error:
        if not refused:
            raise
        raise _refusal(refused[0], where) from error
    finally:
        evaluate.load = load
    if refused:  # lm-eval goes on without a metric that it can't load
        raise _refusal(refused[0], where)


def _refusal(script: str, where: object) -> EvaluationError:
    if script == "code_eval":
        return EvaluationError.at(where, "a task runs programs on this machine that the model writes", _CONSENT)
    return EvaluationError.at(where, f"a task needs the metric `{script}`, a script from the Hub", _CONSENT)


@contextlib.contextmanager
def _others_talk(shown: bool) -> Iterator[None]:
    """What lm-eval and the packages under it print goes to stderr, if it is shown at all; of their log only errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    talk = sys.stderr if shown else io.StringIO()
    try:
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            yield
    finally:
        logger.setLevel(level)
