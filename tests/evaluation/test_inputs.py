"""The inputs of a merge, as its manifest names them: which are evaluated, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

import mergecore
from mergecore.errors import CheckpointError, ConfigError
from mergecore.evaluation.inputs import Input, inputs_of
from mergecore_cli.eval import eval_


@pytest.fixture
def models(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with three models that could be evaluated."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        (make_model(name, seed=seed) / "tokenizer.json").write_text("{}")
    return tmp_path


def linear(*names: str, **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1}} for n in names], **more}


def test_inputs_are_called_as_in_the_config(models: Path) -> None:
    mergecore.merge(linear("a", "./b", "a@2"), "out", workers=0)
    assert inputs_of(Path("out")) == ([Input("a", models / "a"), Input("./b", models / "b")], [])


def test_inputs_of_all_stages(models: Path) -> None:
    mergecore.merge([linear("a", "b", name="first"), linear("first", "c")], "out", workers=0)
    found, problems = inputs_of(Path("out"))
    assert found == [
        Input("c", models / "c"),
        Input(str(models / "a"), models / "a"),
        Input(str(models / "b"), models / "b"),
    ]
    assert problems == []


def test_inputs_that_can_not_be_evaluated(models: Path) -> None:
    mergecore.merge(linear("a", "b", "c"), "out", workers=0)
    shutil.rmtree(models / "a")
    (models / "b" / "tokenizer.json").unlink()
    found, problems = inputs_of(Path("out"))
    assert [one.name for one in found] == ["c"]
    assert [str(problem) for problem in problems] == [
        f"a: is left out: {models / 'a'}: there is no such folder",
        f"b: is left out: {models / 'b'}: has no tokenizer",
    ]


def test_models_with_an_adapter(models: Path) -> None:
    adapter = models / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{place}.lora_A.weight": torch.ones(1, 24), f"{place}.lora_B.weight": torch.ones(24, 1)}
    save_file(factors, adapter / "adapter_model.safetensors")
    mergecore.merge(linear("a+adapter", "b"), "out", workers=0)
    found, problems = inputs_of(Path("out"))
    assert [one.name for one in found] == ["b"]
    assert str(problems[0]) == "a+adapter: is left out: it is a model with an adapter"


def test_a_folder_that_was_not_merged(models: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a: has no mergecore\.json"):
        inputs_of(Path("a"))


@pytest.mark.parametrize("option", ["--with-inputs", "--card"])
def test_options_for_merged_models_alone(models: Path, option: str) -> None:
    app = typer.Typer()
    app.command()(eval_)
    (models / "text.txt").write_text("1+1=2")
    error = CliRunner().invoke(app, ["a", "--text", "text.txt", option]).exception
    assert isinstance(error, ConfigError)
    assert str(error) == f"{option}: none of the models was written by mergecore: no folder has a mergecore.json"
