"""Tasks of lm-eval on local data: the numbers, their names, what is refused, and what becomes of the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import mergecore
from mergecore.errors import ConfigError, EvaluationError, MergeError
from mergecore.evaluation.evaluate import evaluate
from mergecore.evaluation.scores import ModelScore, TaskScore
from mergecore.evaluation.tasks import TaskOptions, Tasks
from mergecore_cli.eval import eval_

lm_eval = pytest.importorskip("lm_eval")

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart"
BASE, ARITHMETIC = QUICKSTART / "base", QUICKSTART / "arithmetic"
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}=",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}=",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": [";"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {
            "name": "number",
            "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}],
        },
    ],
}
EXAMPLES = 6
MakeTask = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data are prepared anew, and not in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """make_task(name, content) -> a file with a task on the first of the quick start's sums."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join((QUICKSTART / "tasks/sums.jsonl").read_text().splitlines(keepends=True)[:EXAMPLES]))

    def make(name: str, content: dict[str, Any], **changes: Any) -> Path:
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        path = tmp_path / "tasks" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"task": name, **source, **content, **changes}))
        return path

    return make


def scores_of(*tasks: object, **options: Any) -> tuple[TaskScore, ...]:
    (score,) = evaluate([ARITHMETIC], tasks=[str(task) for task in tasks], task_options=TaskOptions(**options))
    return score.tasks


def run(*arguments: object) -> Result:
    """`mergecore eval ARGUMENTS`"""
    app = typer.Typer()
    app.command()(eval_)
    return CliRunner().invoke(app, [str(a) for a in arguments])


# Numbers.


def test_scores_are_those_of_lm_eval_itself(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, the CPU and git, for long
    files = [str(make_task("choose", CHOOSE, fewshot_split="test")), str(make_task("write", WRITE))]
    network = AutoModelForCausalLM.from_pretrained(ARITHMETIC, dtype=torch.float32)
    model = HFLM(pretrained=network, tokenizer=AutoTokenizer.from_pretrained(ARITHMETIC))
    manager = TaskManager(include_defaults=False)
    for limit, shots in ((None, None), (4, 1)):
        theirs = lm_eval.simple_evaluate(
            model, tasks=files, limit=limit, num_fewshot=shots, task_manager=manager, log_samples=False
        )["results"]
        options = TaskOptions(limit=limit, shots=shots)
        _, ours = evaluate([BASE, ARITHMETIC], tasks=files, task_options=options)  # after another model
        assert [score.task for score in ours.tasks] == ["choose", "write", "write"]
        for score in ours.tasks:
            facts = theirs[score.task]
            assert score.value == facts[f"{score.metric},{score.filter}"]
            assert score.stderr == facts[f"{score.metric}_stderr,{score.filter}"]
            assert score.examples == (limit or EXAMPLES)
            assert score.shots == (shots or 0)
            assert score.higher_is_better


def test_metrics_and_filters_are_told_apart(make_task: MakeTask) -> None:
    file = make_task("write", WRITE)
    found = scores_of(file, file)  # once
    assert [(score.task, score.label) for score in found] == [
        ("write", "exact_match, first"),
        ("write", "exact_match, number"),
    ]
    assert found[0].value <= found[1].value


def test_texts_prompts_and_tasks_are_asked_of_a_model_that_is_loaded_once(make_task: MakeTask, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("12+34=46; " * 20)
    told: list[str] = []
    arguments: dict[str, Any] = {
        "prompts": ["12+34="],
        "tasks": [str(make_task("choose", CHOOSE))],
        "tell": told.append,
    }
    (score,) = evaluate([BASE], [text], **arguments)
    assert (len(score.texts), len(score.continuations), len(score.tasks)) == (1, 1, 1)
    assert len(told) == 1
    (stored,) = evaluate([BASE], [text], dtype="auto", **arguments)  # bfloat16
    assert stored.texts[0].loss == pytest.approx(score.texts[0].loss, rel=0.02)
    assert stored.texts[0].loss != score.texts[0].loss


# Names.


def test_a_folder_means_all_its_tasks_with_a_group_before_its_parts(make_task: MakeTask) -> None:
    folder = make_task("a", CHOOSE).parent
    make_task("b", CHOOSE, doc_to_text="So {{question}}=")
    make_task("c", WRITE)
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    (folder / "both.yaml").write_text(
        yaml.safe_dump({"group": "both", "task": ["a", "b"], "aggregate_metric_list": [mean]})
    )
    found = {score.task: score for score in scores_of(folder) if score.metric == "acc"}
    assert list(found) == ["both", "a", "b"]
    assert found["both"].value == pytest.approx((found["a"].value + found["b"].value) / 2)
    assert [score.asked_for for score in found.values()] == [True, False, False]
    with pytest.raises(EvaluationError, match="--tasks: lm-eval can't run these together: Duplicate task 'a'"):
        Tasks([str(folder), str(folder / "a.yaml")], TaskOptions())
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["a", "b"]}))
    parts = [score for score in scores_of(folder) if score.metric == "acc"]
    assert [(score.task, score.asked_for) for score in parts] == [("a", True), ("b", True)]


def test_a_name_that_lm_eval_does_not_know(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_path=make_task("gsm8k", CHOOSE).parent, include_defaults=False)  # its own takes seconds
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: index)
    with pytest.raises(ConfigError) as caught:
        Tasks(["gsm8"], TaskOptions())
    assert str(caught.value) == "--tasks: lm-eval has no task `gsm8` (hint: did you mean `gsm8k`?)"
    with pytest.raises(ConfigError, match=r"no task `x` \(hint: `lm-eval ls tasks` lists them\)"):
        Tasks(["x"], TaskOptions())


def test_paths_that_are_no_tasks(make_task: MakeTask, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [")
    other = tmp_path / "other.yaml"
    other.write_text("merge_method: ties")
    no_data = make_task("no_data", CHOOSE, dataset_kwargs={"data_files": {"test": "nowhere/x.jsonl"}})
    for name, message in (
        ("./gone.yaml", "--tasks: there is no file `./gone.yaml`"),
        ("./gone", "--tasks: there is no folder `./gone`"),
        (empty, f"--tasks: there is no task in the folder `{empty}` \\(hint: tasks are \\*.yaml files\\)"),
        (broken, f"{broken}: lm-eval can't load it: while parsing"),
        (other, f"{other}: lm-eval can't load it: .*merge_method"),
        (no_data, f"{no_data}: lm-eval can't load it: Unable to find .*nowhere/x.jsonl"),
    ):
        with pytest.raises(MergeError, match=message):
            Tasks([str(name)], TaskOptions())


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError) as caught:
        Tasks(["mmlu"], TaskOptions())
    hint = "pip install 'mergecore-triton[eval]'"
    assert str(caught.value) == f"running tasks needs lm_eval, which is not installed (hint: {hint})"


# Code of others.


CONSENT = "--confirm-run-unsafe-code allows it, with HF_ALLOW_CODE_EVAL=1 in the environment"


def test_what_a_model_writes_is_only_run_if_the_user_agrees(make_task: MakeTask) -> None:
    task = make_task("programs", CHOOSE, unsafe_code=True)
    with pytest.raises(
        EvaluationError, match="programs: runs programs on this machine that the model writes"
    ) as caught:
        Tasks([str(task)], TaskOptions())
    assert caught.value.problems[0].hint.startswith(CONSENT)
    assert scores_of(task, run_unsafe_code=True)[0].examples == EXAMPLES


def test_humaneval_is_refused_before_anything_is_downloaded() -> None:
    file = Path(lm_eval.__file__).parent / "tasks/humaneval/humaneval.yaml"
    with pytest.raises(EvaluationError, match=f"{file}: a task runs programs on this machine that the model") as caught:
        Tasks([str(file)], TaskOptions())
    assert caught.value.problems[0].hint.startswith(CONSENT)


def test_metrics_that_are_scripts_on_the_hub_are_refused(make_task: MakeTask) -> None:
    import evaluate as metrics

    load = metrics.load
    task = make_task("scripted", WRITE, metric_list=[{"metric": "frugal", "aggregation": "mean"}])
    with pytest.raises(EvaluationError, match="a task needs the metric `frugal`, a script from the Hub") as caught:
        Tasks([str(task)], TaskOptions())
    assert caught.value.problems[0].hint.startswith(CONSENT)
    assert metrics.load is load


def test_a_metric_that_is_loaded_while_the_task_runs_is_refused_too(make_task: MakeTask) -> None:
    task = make_task("late", CHOOSE)
    task.write_text(task.read_text() + "process_results: !function late_code.score\n")
    (task.parent / "late_code.py").write_text(
        "import evaluate\ndef score(doc, results):\n    return {'acc': evaluate.load('bleu').compute()}\n"
    )
    with pytest.raises(EvaluationError, match=f"{ARITHMETIC}: a task needs the metric `bleu`, a script from the Hub"):
        scores_of(task)


def test_errors_of_a_task_are_told_in_a_line(make_task: MakeTask) -> None:
    task = make_task("faulty", CHOOSE)
    task.write_text(task.read_text() + "process_results: !function faulty_code.score\n")
    (task.parent / "faulty_code.py").write_text("def score(doc, results):\n    raise KeyError('first\\nsecond')\n")
    with pytest.raises(EvaluationError) as caught:
        scores_of(task)
    assert str(caught.value) == f"{ARITHMETIC}: lm-eval can't run the tasks on it: 'first\\nsecond'"


# What becomes of the results.


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A merge of the base and the specialist in arithmetic."""
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in (BASE, ARITHMETIC)]
    mergecore.merge({"merge_method": "linear", "models": models}, tmp_path / "merged", workers=0)
    return tmp_path / "merged"


def test_a_merge_beside_its_inputs_as_table_json_chart_and_card(
    merged: Path, make_task: MakeTask, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("12+34=46; " * 20)
    what = ["--text", text, "--tasks", f"{make_task('choose', CHOOSE)},{make_task('write', WRITE)}"]
    chart = tmp_path / "chart.svg"
    done = run(merged, BASE, "--with-inputs", *what, "--plot", chart, "--card", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["models"]
    assert [model["model"] for model in found] == [str(merged), str(BASE), str(ARITHMETIC)]  # each once
    assert [(task["task"], task["filter"]) for task in found[0]["tasks"]] == [
        ("choose", "none"),
        ("write", "first"),
        ("write", "number"),
    ]
    assert done.stderr.splitlines()[-2:] == [f"Wrote {chart}", f"Wrote the results into {merged / 'README.md'}"]
    assert str(merged) in chart.read_text()
    card = (merged / "README.md").read_text()
    assert card.count("## Evaluation") == 1
    assert "| model | choose, acc | write, exact_match, first |" in card
    value, stderr = found[0]["tasks"][0]["value"], found[0]["tasks"][0]["stderr"]
    assert f"| this model | {value:.3f} ± {stderr:.3f} |" in card
    assert f"| this model | {found[0]['texts'][0]['loss']:.3f} |" in card
    assert mergecore.verify(merged).passed
    again = run(merged, BASE, "--with-inputs", *what, "--card", "-q")
    assert again.stderr == ""
    assert (merged / "README.md").read_text() == card
    assert f"{value:.3f} ± {stderr:.3f}" in again.stdout
    assert "choose" in again.stdout


def test_scores_without_an_error_are_shown_without(capsys: pytest.CaptureFixture[str]) -> None:
    from mergecore_cli.eval import _print

    score = TaskScore("t", "bleu", "none", 12.5, None, True, examples=3, shots=None, asked_for=True)
    _print([ModelScore(Path("m"), (), (), (score,))], ["m"])
    assert "12.500" in (out := capsys.readouterr().out)
    assert "±" not in out
