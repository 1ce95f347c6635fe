"""What the commands say of models on the Hub and of files of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from mergecore_cli import console
from mergecore_cli.main import app


@pytest.fixture
def config(hub, make_model, tmp_path: Path) -> Path:
    """A config that merges org/model with a local folder."""
    hub.add("org/model", make_model("m"))
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("org/model", str(make_model("n")))]
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return path


def run(*arguments: object):
    for cached in (console.out, console.err):
        cached.cache_clear()
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_plan_tells_what_there_is_to_download(config: Path, tmp_path: Path) -> None:
    found = json.loads(run("plan", config, "--json").stdout)
    (remote, local) = found["models"]
    assert remote["commit"] is not None
    assert local["commit"] is None
    assert found["download_bytes"] == sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    assert "download" in run("plan", config).stdout


def test_merge_tells_what_it_downloads(config: Path, tmp_path: Path, hub) -> None:
    commit = hub.repositories["org/model"].references["main"]
    said = run("merge", config, tmp_path / "out", "-j", "0").stderr
    assert f"Downloading org/model: 2 files, 47.8 KB, commit {commit[:10]} (to be merged)\n" in said
    assert "Downloading" not in run("merge", config, tmp_path / "again", "-j", "0").stderr


def test_quiet(config: Path, tmp_path: Path) -> None:
    assert run("merge", config, tmp_path / "out", "-j", "0", "-q").stderr == ""


def test_plan_says_why_it_downloads_pickled_weights(hub, make_model, tmp_path: Path, llama) -> None:
    folder = make_model("m")
    (folder / "model.safetensors").unlink()
    torch.save(llama(), folder / "pytorch_model.bin")
    hub.add("org/model", folder)
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": "org/model"}]}))
    assert "(pickled weights are needed to plan the merge)" in run("plan", path).stderr
    assert run("plan", path).stderr == ""
