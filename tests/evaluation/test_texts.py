"""`mergecore eval`: its numbers, its arguments, and what it says about models and texts that are no good."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mergecore.errors import CheckpointError, ConfigError, EvaluationError, MergeError, RunError
from mergecore.evaluation.evaluate import evaluate
from mergecore.evaluation.scores import ModelScore, TextScore
from mergecore_cli.eval import eval_

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart"
BASE, PROSE = QUICKSTART / "base", QUICKSTART / "prose"
ARITHMETIC_TEXT = QUICKSTART / "eval/arithmetic.txt"

pytest.importorskip("transformers")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A few windows of text."""
    file = tmp_path / "sums.txt"
    file.write_text(ARITHMETIC_TEXT.read_text()[:537])
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the base model, to be spoilt."""
    return Path(shutil.copytree(BASE, tmp_path / "model"))


def edit_config(model: Path, **changes: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def run(*arguments: object) -> Result:
    """`mergecore eval ARGUMENTS`"""
    app = typer.Typer()
    app.command()(eval_)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def written(prompt: str, most_tokens: int) -> str:
    """What the base model writes after a prompt."""
    (score,) = evaluate([BASE], prompts=[prompt], max_new_tokens=most_tokens)
    return score.continuations[0].text


def test_losses_are_those_of_the_quick_start() -> None:
    """Windows of 128 tokens, none in common, the first token of each not predicted."""
    (score,) = evaluate([BASE], [ARITHMETIC_TEXT])
    assert score.texts[0].loss == pytest.approx(1.3232, abs=5e-4)
    assert score.texts[0].tokens == 40 * 127
    assert score.texts[0].perplexity == pytest.approx(math.exp(score.texts[0].loss))


def test_loss_is_the_mean_over_all_windows_and_the_rest(text: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(PROSE, dtype=torch.float32)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(PROSE)(text.read_text())["input_ids"])
    assert len(tokens) % 100 > 1
    losses = []
    for start in range(0, len(tokens), 100):
        window = tokens[start : start + 100]
        log_p = network(window[None]).logits[0].log_softmax(-1)
        losses += [-log_p[i, window[i + 1]].item() for i in range(len(window) - 1)]
    (score,) = evaluate([PROSE], [text], window=100)
    assert score.texts[0].loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert score.texts[0].tokens == len(losses)


def test_loss_does_not_depend_on_the_batch(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = evaluate([BASE], [text], window=16)
    monkeypatch.setattr("mergecore.evaluation.texts.BATCH_TOKENS", 1)
    (single,) = evaluate([BASE], [text], window=16)
    assert single.texts[0].loss == pytest.approx(whole.texts[0].loss, abs=1e-5)


def test_mean_gives_each_text_the_same_share() -> None:
    texts = (TextScore(Path("a"), 10, 1.0), TextScore(Path("b"), 1000, 3.0))
    assert ModelScore(Path("m"), texts).mean_loss == 2.0
    assert math.isnan(ModelScore(Path("m"), ()).mean_loss)
    assert TextScore(Path("a"), 1, 1e4).perplexity == math.inf


def test_a_continuation_is_greedy_and_the_new_part_alone() -> None:
    short = written("12+34=", 6)
    assert short == written("12+34=", 12)[: len(short)]
    assert short[0].isdigit()


def test_files_after_text_are_texts(text: Path, tmp_path: Path) -> None:
    """What the shell makes of `--text *.txt`, wherever the models stand."""
    other = tmp_path / "other.txt"
    other.write_text("12+34=46; 50-20=30; " * 5)
    after = run(BASE, PROSE, "--text", text, other, "--json", "-q")
    before = run("--json", "-q", "--text", text, other, BASE, PROSE)
    assert after.exit_code == 0, after.output
    assert after.stdout == before.stdout
    found = json.loads(after.stdout)
    assert [m["model"] for m in found["models"]] == [str(BASE), str(PROSE)]
    assert [t["text"] for t in found["models"][0]["texts"]] == [str(text), str(other)]
    assert found["models"][0]["mean_loss"] == pytest.approx(
        sum(t["loss"] for t in found["models"][0]["texts"]) / 2, abs=1e-12
    )


def test_a_folder_of_texts_means_the_files_in_it(text: Path) -> None:
    (text.parent / "notes.md").write_text("no text to predict")
    result = run(BASE, "--text", text.parent)
    assert result.exit_code == 0, result.output
    assert "sums" in result.stdout
    assert "notes" not in result.stdout


def test_table_goes_to_stdout_and_talk_to_stderr(text: Path) -> None:
    result = run(BASE, PROSE, "--text", text)
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(str(QUICKSTART))]
    assert [row[0] for row in rows] == [str(BASE), str(PROSE)]  # long paths are not cut off
    assert rows[0][1] == rows[0][3]  # one text: its loss is the mean
    assert "Evaluating" in result.stderr
    assert "Evaluating" not in result.stdout
    assert "Loading weights" not in result.output


def test_texts_of_the_same_name_are_told_apart(text: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin" / text.name
    twin.parent.mkdir()
    twin.write_text(text.read_text())
    result = run(BASE, "--text", text, twin, "-q")
    assert str(twin) in result.stdout


def test_prompt_prints_what_the_model_writes() -> None:
    result = run(BASE, "--prompt", "12+34=", "--max-new-tokens", "6", "-q")
    assert result.exit_code == 0, result.output
    assert "12+34=" + written("12+34=", 6) in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BASE], "nothing to evaluate on"),
        ([ARITHMETIC_TEXT], "no model to evaluate"),
        ([BASE, "--text", BASE], r"no \*\.txt file"),
        ([BASE, "--text", "no.txt"], r"no\.txt: can't be read: No such file"),
        ([BASE, "--text", ARITHMETIC_TEXT, "--window", "1"], "predicts nothing"),
        ([BASE, "--text", ARITHMETIC_TEXT, "--window", "600"], "takes 512 tokens at most, the window has 600"),
        ([BASE, "--prompt", ""], "is empty"),
        ([BASE, "--prompt", "1", "--plot", "x.svg"], "--plot: there are no numbers to show"),
        ([BASE, "--prompt", "1", "--card"], "--card: there are no numbers to show"),
        ([BASE, "--text", ARITHMETIC_TEXT, "--plot", "x.pdf"], "`x.pdf` is not the name of a chart"),
        ([BASE, "--text", ARITHMETIC_TEXT, "--dtype", "int8"], "--dtype: `int8` is not known"),
    ],
)
def test_wrong_arguments(arguments: list[object], message: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise error


# Models and texts that are no good.


def test_all_folders_are_checked_before_one_is_loaded(tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty").mkdir()
    told: list[str] = []
    with pytest.raises(MergeError, match="no such folder") as caught:
        evaluate([BASE, tmp_path / "gone", tmp_path / "empty"], [text], tell=told.append)
    assert "has no config.json" in str(caught.value)
    assert told == []


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def shrink_vocabulary(model: Path) -> None:
    """Weights and config agree with each other, not with the tokenizer."""
    for file in model.glob("*.safetensors"):
        rows = {name: w[:20] if w.shape[0] == 1000 else w for name, w in load_file(file).items()}
        save_file({name: w.contiguous() for name, w in rows.items()}, file, metadata={"format": "pt"})
    edit_config(model, vocab_size=20)


def remove_shard(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()


def truncate_shard(model: Path) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_tokenizer, "has no tokenizer"),
        (lambda model: (model / "tokenizer.json").write_text("{"), "transformers can't load it"),
        (lambda model: (model / "config.json").write_text("{"), "transformers can't load it: .*not a valid JSON"),
        (lambda model: edit_config(model, model_type="bogus"), "transformers can't load it: .*bogus"),
        (remove_shard, "transformers can't load it"),
        (truncate_shard, "transformers can't load it: .*header"),
        (lambda model: edit_config(model, num_hidden_layers=7), "lacks 9 weights .* e.g. model.layers.6"),
        (lambda model: edit_config(model, vocab_size=900), r"is \[1000, 160\], by config.json .* \[900, 160\]"),
        (shrink_vocabulary, "the tokenizer gives token .* but the vocabulary has 20 tokens"),
    ],
)
def test_spoilt_models(model: Path, text: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(model)
    with pytest.raises(MergeError, match=message) as caught:
        evaluate([model], [text])
    assert str(model) in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_weights_that_config_json_does_not_call_for_are_told(model: Path, text: Path) -> None:
    edit_config(model, num_hidden_layers=5)
    told: list[str] = []
    evaluate([model], [text], tell=told.append)
    assert any("9 weights are not part of the model" in line for line in told)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "too short: 0 tokens"), (b"a", "too short: 1 tokens"), (b"ab\xff", "not UTF-8")]
)
def test_texts_that_are_no_good(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        evaluate([BASE], [file])


def test_a_device_that_is_not_there(text: Path) -> None:
    with pytest.raises(RunError, match="--device: `cuda:77` can't be used"):
        evaluate([BASE], [text], device="cuda:77")


def test_without_transformers_the_extra_is_named(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EvaluationError) as caught:
        evaluate([BASE], [text])
    assert caught.value.problems[0].hint == "pip install 'mergecore-triton[eval]'"
    assert "transformers" in str(caught.value)


def test_import_needs_neither_torch_nor_transformers() -> None:
    heavy = "sorted({'torch', 'transformers'} & set(sys.modules))"
    code = f"import sys, mergecore.evaluation.evaluate, mergecore_cli.eval; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
