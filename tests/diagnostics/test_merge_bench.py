"""The benchmark of merges: what is run, when, on what; the floor; and what follows from the times."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergecore import ConfigError, RunError
from mergecore.checkpoint.dtypes import Dtype
from mergecore.diagnostics import merge_bench
from mergecore.diagnostics.environment import look_around
from mergecore.diagnostics.merge_bench import METHODS, time_merges
from mergecore.diagnostics.merge_bench_chart import draw_merges
from mergecore.diagnostics.merge_bench_floor import start_floor
from mergecore.diagnostics.merge_bench_models import ModelSet
from mergecore.diagnostics.merge_bench_report import MergeBenchReport, MergeTiming
from mergecore.diagnostics.merge_bench_shapes import Shape
from mergecore.diagnostics.merge_bench_tools import Tool, mergecore_tool, mergekit_tool
from mergecore.diagnostics.process_tree import Usage

MODELS = ModelSet(Shape(64, 160, 2, 4, 2, 256), Dtype.BF16, tunes=2, shard_bytes=200_000)
WRITE = """
import pathlib, sys
out = pathlib.Path(sys.argv[2])
out.mkdir()
(out / "model.safetensors").write_bytes(bytes(int(sys.argv[1])))
"""
"""A merge that writes as many bytes as the name of the config says."""


def usage(seconds: float, peak: int | None = 10**9) -> Usage:
    return Usage(seconds, seconds, peak, peak)


TIMING = MergeTiming(
    method="ties",
    models=4,
    read_bytes=8 * 10**9,
    write_bytes=2 * 10**9,
    startup_runs=(usage(2), usage(1), usage(3)),
    merge_runs=(usage(6), usage(7, 2 * 10**9), usage(4)),
    floor_runs=(1, 3, 2),
    mergekit_runs=(usage(60, None), usage(62, 5 * 10**9)),
)
NOTHING_BEYOND = replace(TIMING, method="linear", merge_runs=(usage(1, None),), mergekit_runs=())
REPORT = MergeBenchReport(look_around(), MODELS, False, 2, 3, "mergekit 0.1.5", (TIMING, NOTHING_BEYOND), ("a reason",))


class NoFloor:
    """The floor, without copying."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def seconds(self, models: Sequence[Sequence[Path]], out: Path) -> float:
        self.done.append(" ".join(["copy", *(files[0].parent.name for files in models)]))
        return 2.0


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order: nothing is merged, copied, read or dropped, and all takes a second or two."""
    done: list[str] = []

    def merge(tool: Tool, config: Path, out: Path, expected_bytes: int) -> Usage:
        kind = "tiny" if config.stem.startswith("tiny") else "merge"
        done.append(f"{tool.name} {kind}")
        if tool.name.startswith("mergekit") and config.stem.endswith("karcher"):
            raise RunError.at(tool.name, "ended with 1")
        return usage(5 if kind == "merge" else 1)

    def prepare(word: str) -> Callable[[Any], None]:
        return lambda files: done.append(" ".join([word, *sorted({path.parent.name for path in files})]))

    monkeypatch.setattr(Tool, "merge", merge)
    monkeypatch.setattr(merge_bench, "start_floor", lambda workers: nullcontext(NoFloor(done)))
    monkeypatch.setattr(merge_bench, "mergekit_tool", lambda python: Tool("mergekit 9.8", (str(python),)))
    monkeypatch.setattr(merge_bench, "warm", prepare("warm"))
    monkeypatch.setattr(merge_bench, "drop", prepare("drop"))
    monkeypatch.setattr(merge_bench, "require_dropping", lambda: None)
    return done


def test_runs_take_turns(done: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    report = time_merges(
        MODELS, methods=["linear", "slerp"], rounds=2, workers=3, out=tmp_path, tell=told.append, against=Path("python")
    )
    linear = [
        "mergecore tiny",
        "warm tune1 tune2", "copy tune1 tune2",
        "warm tune1 tune2", "mergecore merge",
        "warm tune1 tune2", "mergekit 9.8 merge",
    ]  # fmt: skip
    assert done == 2 * linear + 2 * [line.replace("tune1 tune2", "base tune1") for line in linear]
    assert told[1:4] == [
        "Timing linear (1 of 2)",
        "Timing linear (2 of 2)",
        "linear took 5.00 s, beyond start-up 2.0 times the floor",
    ]
    assert (report.rounds, report.workers, report.cold, report.mergekit) == (2, 3, False, "mergekit 9.8")
    assert [t.method for t in report.timings] == ["linear", "slerp"]
    timing = report.timings[0]
    assert (timing.models, timing.read_bytes) == (2, 2 * MODELS.model_bytes)
    assert timing.write_bytes > MODELS.model_bytes
    assert timing.startup_runs == (usage(1), usage(1))
    assert timing.merge_runs == timing.mergekit_runs == (usage(5), usage(5))
    assert timing.floor_runs == (2, 2)
    assert list(tmp_path.iterdir()) == []


def test_cold_runs_drop_the_inputs_but_those_of_the_start_up(done: list[str], tmp_path: Path) -> None:
    report = time_merges(MODELS, methods=["passthrough"], rounds=1, cold=True, out=tmp_path)
    assert done == ["mergecore tiny", "drop tune1", "copy tune1", "drop tune1", "mergecore merge"]
    assert report.cold


def test_all_usual_methods(done: list[str], tmp_path: Path) -> None:
    report = time_merges(MODELS, out=tmp_path)
    assert tuple(t.method for t in report.timings) == METHODS
    assert report.rounds == 3
    assert report.workers >= 1
    assert report.mergekit is None


def test_a_failing_mergekit_is_told_and_left_out(done: list[str], tmp_path: Path) -> None:
    report = time_merges(MODELS, methods=["karcher", "linear"], rounds=2, out=tmp_path, against=Path("python"))
    assert report.skipped == ("karcher: mergekit 9.8: ended with 1",)
    assert [len(t.mergekit_runs) for t in report.timings] == [0, 2]
    assert [len(t.merge_runs) for t in report.timings] == [2, 2]
    assert done.count("mergekit 9.8 merge") == 3


def test_a_tool_must_write_all_weights(tmp_path: Path) -> None:
    tool = Tool("mergecore", (sys.executable, "-c", WRITE))
    assert tool.merge(Path("10"), tmp_path / "out", 10).wall_s > 0
    with pytest.raises(RunError, match="mergecore: wrote 10 bytes of weights, but 20 were expected"):
        tool.merge(Path("10"), tmp_path / "out", 20)
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_is_timed() -> None:
    name, command = mergecore_tool(3).name, mergecore_tool(3).command
    assert name == "mergecore"
    assert command[0] == sys.executable
    assert command[-3:] == ("merge", "--workers", "3")


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"methods": ["tise"]}, ConfigError, "--method: `tise` is not a merge method .hint: did you mean `ties`"),
        (
            {"methods": ["multislerp", "model_stock"], "models": replace(MODELS, tunes=1)},
            ConfigError,
            "--models: `model_stock` needs 2 fine-tunes, not 1",
        ),
        (
            {"against": Path("none/python")},
            RunError,
            "--against: `none/python` can't be run: No such file or directory",
        ),
    ],
)
def test_wrong_choices(choices: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        time_merges(**{"models": MODELS} | choices)


def test_an_interpreter_without_mergekit(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    message = "--against: `.*/python` has no mergekit .hint: name the interpreter that mergekit is installed for"
    with pytest.raises(RunError, match=message):
        mergekit_tool(python)


def test_the_floor_reads_all_and_writes_the_first(tmp_path: Path) -> None:
    models = [[tmp_path / f"{model}-{i}" for i in range(2)] for model in "ab"]
    for path in (*models[0], *models[1]):
        path.write_bytes(os.urandom(2_500_000))
    models[1] = models[1][:1]
    with start_floor(2) as floor:
        assert floor.seconds(models, tmp_path / "out") > 0
        with pytest.raises(RunError, match="out: can't be written: File exists"):
            floor.seconds(models, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["a-0", "a-1"]
    assert all((tmp_path / "out" / path.name).stat().st_size == 2_500_000 for path in models[0])
    assert all(bytes(1 << 20) not in (tmp_path / "out" / path.name).read_bytes() for path in models[0])


def test_what_follows_from_a_timing() -> None:
    assert (TIMING.seconds, TIMING.startup_seconds, TIMING.floor_seconds) == (6, 2, 2)
    assert TIMING.seconds_beyond_startup == 4
    assert TIMING.times_floor == 2
    assert TIMING.share_of_floor == 0.5
    assert TIMING.bytes_per_s == 2e9
    assert TIMING.peak_bytes == 2 * 10**9
    assert TIMING.mergekit_seconds == 61
    assert TIMING.mergekit_peak_bytes == 5 * 10**9
    assert TIMING.speedup == pytest.approx(61 / 6)


def test_a_merge_that_is_no_longer_than_its_start_up() -> None:
    assert NOTHING_BEYOND.seconds_beyond_startup == NOTHING_BEYOND.times_floor == 0
    assert NOTHING_BEYOND.share_of_floor is None
    assert NOTHING_BEYOND.bytes_per_s is None
    assert NOTHING_BEYOND.peak_bytes is None
    assert NOTHING_BEYOND.mergekit_seconds is None
    assert NOTHING_BEYOND.speedup is None


def test_facts_hold_fields_and_what_follows() -> None:
    facts = REPORT.facts()
    assert facts["models"]["dtype"] == "bfloat16"
    assert facts["models"]["shape"]["hidden"] == 64
    assert facts["models"]["model_bytes"] == MODELS.model_bytes
    assert facts["skipped"] == ["a reason"]
    ties, _ = facts["timings"]
    assert ties["merge_runs"][1] == {"wall_s": 7, "cpu_s": 7, "peak_bytes": 2e9, "peak_bytes_without_files": 2e9}
    assert {"seconds", "bytes_per_s", "times_floor", "share_of_floor", "speedup", "peak_bytes"} < set(ties)


@pytest.mark.parametrize(("name", "magic"), [("chart.png", b"\x89PNG"), ("chart.svg", b"<?xml")])
def test_the_chart(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    draw_merges(REPORT, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    if name.endswith("svg"):
        assert b"ties" in content
        assert b"inputs in the page cache" in content
