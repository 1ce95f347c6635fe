"""The scripts of this folder work, on the smallest models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def run(script: str, *arguments: object) -> str:
    """What the script prints to stdout."""
    command = [sys.executable, HERE / script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes in several shards."""
    folder = tmp_path_factory.mktemp("models")
    run("generate_models.py", folder, "--fine-tunes", 2, "--shard-gb", 0.0001, "--processes", 2)
    return folder


def load(model: Path) -> dict[str, torch.Tensor]:
    return {name: w for file in sorted(model.glob("*.safetensors")) for name, w in load_file(file).items()}


def test_models_are_whole_and_near_their_base(models: Path) -> None:
    base, first, second = (load(models / name) for name in ("base", "tune1", "tune2"))
    index = json.loads((models / "base/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == base.keys() == first.keys()
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in base.values())
    weight = "model.layers.1.mlp.up_proj.weight"
    assert base[weight].float().std() == pytest.approx(0.02, rel=0.05)
    assert (first[weight].float() - base[weight].float()).std() == pytest.approx(0.0002, rel=0.1)
    assert (second[weight].float() - base[weight].float()).std() == pytest.approx(0.002, rel=0.1)


def test_the_same_seed_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    run("generate_models.py", tmp_path, "--fine-tunes", 2, "--shard-gb", 0.0001, "--processes", 1)
    files = [file.relative_to(models) for file in models.rglob("*.*")]
    assert all((models / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_comparison_runs_and_removes_what_it_wrote(models: Path, tmp_path: Path) -> None:
    scratch, report = tmp_path / "scratch", tmp_path / "report.json"
    scratch.mkdir()
    arguments = ["--method", "linear", "--tool", "floor", "--tool", "mergecore", "--out", scratch, "--json", report]
    table = run("compare_with_mergekit.py", models, *arguments)
    assert "x the floor" in table
    assert list(scratch.iterdir()) == []
    (row,) = json.loads(report.read_text())["methods"]
    assert row["method"] == "linear"
    assert row["runs"]["mergecore"][0]["peak_bytes"] > 1e7
