"""`mergecore bench merge`: its table, its JSON, its chart, its errors; with real merges of tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mergecore.diagnostics.merge_bench_shapes import SHAPES, Shape
from mergecore.diagnostics.merge_bench_tools import Tool
from mergecore.diagnostics.process_tree import Usage
from mergecore_cli.main import app, main

MERGEKIT = """
import shutil, sys, yaml
shutil.copytree(yaml.safe_load(open(sys.argv[1]))["base_model"], sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def done(folder: Path) -> Result:
    """A whole run on a small shape, beside a stand-in for mergekit that copies the base."""
    (folder / "mergekit/scripts").mkdir(parents=True)
    (folder / "mergekit/scripts/run_yaml.py").write_text(f"def main():\n    exec({MERGEKIT!r}, {{}})\n")
    (folder / "mergekit-9.8.dist-info").mkdir()
    (folder / "mergekit-9.8.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mergekit\nVersion: 9.8\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    arguments = ["--method", "ties", "--models", "2", "--rounds", "1", "--layers", "3", "--dtype", "float16", "-j", "1"]
    arguments += ["--folder", folder / "models", "--keep", "--out", folder, "--against", python]
    arguments += ["--json", folder / "bench.json", "--plot", folder / "bench.svg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "llama-1b", Shape(64, 160, 2, 4, 2, 256))
        return CliRunner().invoke(app, ["bench", "merge", *map(str, arguments)])


def test_table(done: Result, folder: Path) -> None:
    assert done.exit_code == 0, done.output
    machine, models, _, columns, ties = done.stdout.splitlines()
    assert machine.endswith("; 1 worker")
    assert models == "3 models of 0.3 MB (float16, 3 layers), in the page cache; medians of 1 run"
    assert columns.split("  ")[0] == "method"
    assert "mergekit 9.8, s" in columns
    assert ties.split()[:2] == ["ties", "3"]
    assert ties.endswith("x")
    generating, timing, took, *wrote = done.stderr.splitlines()
    assert generating == f"Generating 3 models, 1.0 MB, in {folder / 'models'}"
    assert timing == "Timing ties (1 of 1)"
    assert took.startswith("ties took ")
    assert wrote == [f"Wrote {folder / 'bench.json'}", f"Wrote {folder / 'bench.svg'}"]


def test_json_has_all_numbers(done: Result, folder: Path) -> None:
    facts = json.loads((folder / "bench.json").read_text())
    assert facts["models"]["shape"]["layers"] == 3
    assert facts["models"]["tunes"] == 2
    assert (facts["cold"], facts["workers"], facts["mergekit"]) == (False, 1, "mergekit 9.8")
    assert facts["environment"]["torch"]
    (ties,) = facts["timings"]
    assert ties["method"] == "ties"
    assert ties["read_bytes"] == 3 * facts["models"]["model_bytes"]
    assert ties["seconds"] == ties["merge_runs"][0]["wall_s"] > ties["floor_seconds"] > 0
    assert ties["speedup"] == pytest.approx(ties["mergekit_seconds"] / ties["seconds"])


def test_only_what_was_asked_for_stays(done: Result, folder: Path) -> None:
    assert (folder / "bench.svg").exists()
    assert {path.name for path in (folder / "models").iterdir()} == {"base", "tune1", "tune2", "generated.json"}
    made = {"bench.json", "bench.svg", "models", "python", "mergekit", "mergekit-9.8.dist-info"}
    assert {path.name for path in folder.iterdir()} == made


def test_json_to_stdout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tool, "merge", lambda *arguments: Usage(1.0, 1.0, None, None))
    monkeypatch.setitem(SHAPES, "mixtral", SHAPES["mixtral"].tiny())
    arguments = ["--like", "mixtral", "--method", "linear", "-j", "1", "--out", str(folder), "--json", "-", "-q"]
    done = CliRunner().invoke(app, ["bench", "merge", *arguments])
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts["models"]["shape"]["experts"] == 2
    assert facts["timings"][0]["bytes_per_s"] is None
    assert len(facts["timings"][0]["floor_runs"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--like", "mistral"], 2, "error: --like: `mistral` is not known\nhint: did you mean `mixtral`?\n"),
        (["--dtype", "bf16"], 2, "error: --dtype: `bf16` is not known\nhint: did you mean `bfloat16`?\n"),
        (["--method", "tise"], 2, "error: --method: `tise` is not a merge method\nhint: did you mean `ties`?\n"),
        (
            ["--method", "model_stock", "--models", "1"],
            2,
            "error: --models: `model_stock` needs 2 fine-tunes, not 1\n",
        ),
        (["--json", "none/bench.json"], 2, "error: --json: there is no folder `none`\nhint: make it first\n"),
        (
            ["--plot", "chart.pdf"],
            2,
            "error: --plot: `chart.pdf` is not the name of a chart\nhint: end it in .png or .svg\n",
        ),
        (["--out", "none"], 1, "error: --out: `none` can't be written to: No such file or directory\n"),
        (
            ["--against", "none/python"],
            1,
            "error: --against: `none/python` can't be run: No such file or directory\n"
            "hint: name the interpreter that mergekit is installed for, such as venv/bin/python\n",
        ),
    ],
)
def test_errors(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mergecore", "bench", "merge", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().err) == (code, message)
