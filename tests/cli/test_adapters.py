"""`mergecore extract-lora` and `mergecore merge-lora` as a user types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hub_server import HubServer
from typer.testing import CliRunner

from mergecore_cli import console
from mergecore_cli.main import app

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _fresh_consoles() -> None:
    """They hold the streams of the first command otherwise."""
    console.out.cache_clear()
    console.err.cache_clear()


def run(*arguments: object) -> tuple[str, Sequence[str]]:
    """What a command prints, and the lines that it says."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr.splitlines()


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[Path, Path]:
    return make_model("tuned", seed=1), make_model("base")


def test_extract_lora(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "lora"
    printed, said = run("extract-lora", pair[0], "--base", pair[1], out, "--rank", "4", "--device", "cpu")
    table = printed.splitlines()
    assert table[0].split() == ["tensor", "shape", "rank", "error", "energy", "values"]
    assert re.fullmatch(r"model\.layers\.\d\.mlp\.down_proj\.weight +24 x 40 +4 +0\.\d{4} +0\.\d{4} +exact *", table[1])
    assert table[-1].split()[-1] == "whole"
    assert re.fullmatch(
        r"Extracted 14 tensors by rank 4: relative error 0\.\d{4}, energy kept 0\.\d{4}, 2,816 parameters", said[0]
    )
    assert said[1] == "Held 7 other tensors as they are"
    assert re.fullmatch(rf"Wrote {out} \([0-9.]+ KB\)", said[2])


def test_the_report_for_programs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--energy", "0.5", "-i", "mlp", "-e", "down", "--json", "-q"]
    printed, said = run("extract-lora", pair[0], "--base-model", pair[1], tmp_path / "lora", *options)
    facts = json.loads(printed)
    assert said == []
    assert facts["ranks"] == "0.5 of the energy of each matrix"
    assert len(facts["tensors"]) == 4
    first = facts["tensors"][0]
    assert first["energy"] >= 0.5
    assert 0 < first["relative_error"] < 0.71
    assert (first["singular_values"], first["parameters"]) == ("exact", first["rank"] * (24 + 40))


def test_merge_lora(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name, rank in (("a", 2), ("b", 3)):
        run(
            "extract-lora",
            *pair[:1],
            "--base",
            pair[1],
            tmp_path / name,
            "--rank",
            rank,
            "--skip-undecomposable",
            "-e",
            "embed|head",
        )
    config = tmp_path / "merge.yml"
    config.write_text(
        "merge_method: svd\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 0.5}}\n"
    )
    printed, said = run("merge-lora", config, tmp_path / "out")
    assert printed == ""
    assert re.fullmatch(r"Merged 14 modules by svd: rank 3, relative error 0\.\d{4}", said[0])
    assert said[1].startswith(f"Wrote {tmp_path / 'out'} (")
    config.write_text("merge_method: dare_linear\nmodels:\n- {model: a, parameters: {weight: 1, density: 0.5}}\n")
    _, said = run("merge-lora", config, tmp_path / "out", "--overwrite", "--seed", "7")
    assert said[0] == "Merged 14 modules by dare_linear: rank 2, seed 7"
    printed, said = run("merge-lora", config, tmp_path / "out", "--overwrite", "--seed", "7", "--json", "-q")
    facts = json.loads(printed)
    assert said == []
    ranks = facts.pop("ranks")
    assert (len(ranks), ranks["model.layers.0.mlp.up_proj"]) == (14, 2)
    assert facts == {
        "folder": str(tmp_path / "out"),
        "method": "dare_linear",
        "relative_error": None,
        "seed": 7,
        "bytes": (tmp_path / "out" / "adapter_model.safetensors").stat().st_size,
        "notes": [],
    }


def test_a_base_on_the_hub(hub: HubServer, pair: tuple[Path, Path], tmp_path: Path) -> None:
    commit = hub.add("org/base", pair[1])
    out = tmp_path / "lora"
    _, said = run("extract-lora", pair[0], "--base", "org/base@main", out, "--rank", "2", "-i", "proj")
    assert said[0] == f"Downloading org/base@main: 2 files, 47.8 KB, commit {commit[:10]} (to be compared)"
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "main")
    card = (out / "README.md").read_text()
    assert f"org/base@main (commit {commit})" in card
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: peft\n")
