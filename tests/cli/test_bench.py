"""`mergecore bench kernels`: its table, its JSON, its chart, its errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mergecore.diagnostics import kernel_bench
from mergecore_cli.main import app, main

QUICK = ["bench", "kernels", "--op", "copy,ties", "--size", "small", "--device", "cpu", "--quick"]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """fails(*arguments) -> exit code and stderr, by way of `main`, where errors become messages."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.setattr(sys, "argv", ["mergecore", "bench", "kernels", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capsys.readouterr().err

    return run


def test_table() -> None:
    done = CliRunner().invoke(app, QUICK)
    assert done.exit_code == 0
    head, machine, _, columns, copy, ties = done.stdout.splitlines()
    assert head.startswith("torch on cpu (triton needs a GPU): ")
    assert machine.startswith("torch 2")
    assert machine.endswith("medians of 3 runs")
    assert columns.split()[:6] == ["operation", "dtype", "M", "size", "ms", "ns/element"]
    assert copy.split()[:4] == ["copy", "bf16", "1", "small"]
    assert ties.split()[:4] == ["ties", "bf16", "3", "small"]
    assert ties.endswith("x")
    assert done.stderr.splitlines() == ["Timing copy bf16 M=1 small", "Timing ties bf16 M=3 small"]


def test_json_has_all_numbers() -> None:
    done = CliRunner().invoke(app, [*QUICK, "--models", "2,4", "--dtype", "fp16", "--json", "-q"])
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert [(t["operation"], t["models"]) for t in facts["timings"]] == [("copy", 1), ("ties", 2), ("ties", 4)]
    assert facts["backend"]["name"] == "torch"
    assert facts["environment"]["torch"]
    ties = facts["timings"][1]
    assert ties["dtype"] == "fp16"
    assert ties["bytes_moved"] == 4 * 5 * 40_961 * 2
    assert ties["bytes_per_s"] == pytest.approx(ties["bytes_moved"] / ties["seconds"])
    assert {"ns_per_element", "share_of_copy", "speedup", "copy_bytes_per_s", "by_hand_seconds"} <= set(ties)


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(app, [*QUICK, "--plot", str(tmp_path / "roofline.svg")])
    assert done.exit_code == 0
    assert f"Wrote {tmp_path / 'roofline.svg'}" in done.stderr
    assert (tmp_path / "roofline.svg").exists()


def test_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "free_bytes", lambda device: 10)
    done = CliRunner().invoke(app, QUICK)
    assert done.exit_code == 0
    assert "warning: left out copy bf16 M=1 small: needs 1.1 GB, 0.0 GB are free" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--op", "tise"], 2, "error: --op: `tise` is not known\nhint: did you mean `ties`?\n"),
        (["--models", "2,x"], 2, "error: --models: `x` is not a number of models\nhint: write it like 2,3\n"),
        (
            ["--plot", "chart.pdf"],
            2,
            "error: --plot: `chart.pdf` is not the name of a chart\nhint: end it in .png or .svg\n",
        ),
        (
            ["--backend", "triton", "--device", "cpu"],
            2,
            "error: --backend: triton needs a GPU, and the device is cpu\n"
            "hint: add --device cuda, or leave --backend out\n",
        ),
    ],
)
def test_errors(fails: Callable[..., tuple[int, str]], arguments: list[str], code: int, message: str) -> None:
    assert fails(*arguments) == (code, message)


def test_a_device_that_is_not_there(fails: Callable[..., tuple[int, str]]) -> None:
    code, message = fails("--device", "teapot")
    assert code == 1
    assert message.startswith("error: --device: `teapot` can't be used: ")
    assert message.endswith("hint: leave it out, or write cpu\n")


def test_bench_alone_shows_its_help() -> None:
    assert "kernels" in CliRunner().invoke(app, ["bench"]).output
