"""The benchmark: what it times, what it leaves out, and that it times nothing wrong. And its chart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergecore import ConfigError, RunError
from mergecore.diagnostics import kernel_bench
from mergecore.diagnostics.choices import require_plotting
from mergecore.diagnostics.devices import load_kernels, load_ops
from mergecore.diagnostics.environment import Gpu
from mergecore.diagnostics.kernel_bench import BenchReport, Timing, time_kernels
from mergecore.diagnostics.roofline import draw_roofline
from mergecore_kernels import torch_ops
from mergecore_kernels.cases import OPERATIONS

SMALL: dict[str, Any] = {"sizes": ["small"], "device": "cpu"}
TIMING = Timing("ties", "bf16", 2, "q_proj", 1000, 8000, 2.5, 2e-6, 6e-6, 8e9)


def test_all_operations_are_timed() -> None:
    told: list[str] = []
    report = time_kernels(**SMALL, dtypes=["bf16"], models=[2], quick=True, tell=told.append)
    assert [t.operation for t in report.timings] == list(OPERATIONS)
    assert told[0] == "Timing copy bf16 M=1 small"
    assert str(report.backend) == "torch on cpu"
    assert report.skipped == ()
    assert report.rounds == 3
    for t in report.timings:
        assert t.seconds > 0
        assert t.by_hand_seconds is not None
        assert t.by_hand_seconds > 0
        assert t.copy_bytes_per_s > 1e8


def test_what_is_not_named_suits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(kernel_bench, "_time", lambda case, *_: (names.append(case.name), (1.0, None))[1])
    report = time_kernels(operations=["ties"], device="cpu")
    assert names == [f"ties {dtype} M={m} q_proj" for dtype in ("bf16", "fp32") for m in (2, 3)]
    assert report.rounds == 7
    names.clear()
    time_kernels(operations=["ties"], device="cpu", quick=True)
    assert names == ["ties bf16 M=3 q_proj"]


def test_what_follows_from_a_timing() -> None:
    assert TIMING.bytes_per_s == pytest.approx(4e9)
    assert TIMING.ns_per_element == pytest.approx(2)
    assert TIMING.share_of_copy == pytest.approx(0.5)
    assert TIMING.speedup == pytest.approx(3)
    assert replace(TIMING, by_hand_seconds=None).speedup is None


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "free_bytes", lambda device: 2_000_000_000)
    report = time_kernels(operations=["ties"], dtypes=["bf16"], models=[3], sizes=["embedding"], device="cpu")
    assert report.timings == ()
    assert report.skipped == ("ties bf16 M=3 embedding: needs 6.3 GB, 2.0 GB are free",)


def test_what_is_written_by_hand_is_left_out_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "free_bytes", lambda device: (1 << 30) + 3_000_000)
    (timing,) = time_kernels(**SMALL, operations=["ties"], dtypes=["bf16"], models=[2], quick=True).timings
    assert timing.by_hand_seconds is None


def test_a_wrong_result_is_not_timed(broken_kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "load_ops", lambda name: broken_kernels)
    message = (
        "ties bf16 M=2 small: torch on cpu gives a wrong result, so it is not timed: element 204804 is 1.5, not .*"
    )
    with pytest.raises(RunError, match=message + "hint: `mergecore doctor` checks all operations"):
        time_kernels(**SMALL, operations=["ties"], dtypes=["bf16"], models=[2])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"operations": ["tise"]}, "--op: `tise` is not known .hint: did you mean `ties`"),
        ({"dtypes": ["int8"]}, "--dtype: `int8` is not known .hint: there are bf16, fp16, fp32"),
        ({"sizes": ["q_porj"]}, "--size: `q_porj` is not known .hint: did you mean `q_proj`"),
        ({"models": [0]}, "--models: 0 is not a number of models .hint: 1 to 64"),
        ({"models": [2, 65]}, "--models: 65 is not a number of models"),
        ({"backend": "numpy"}, "--backend: `numpy` is not a backend"),
    ],
)
def test_wrong_choices(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        time_kernels(**{"device": "cpu"} | choices)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_ops("torch") is torch_ops
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_kernels() is None


@pytest.fixture(scope="module")
def report() -> BenchReport:
    return time_kernels(**SMALL, operations=["ties", "copy"], models=[2], quick=True)


@pytest.mark.parametrize(("name", "magic"), [("chart.png", b"\x89PNG"), ("chart.svg", b"<?xml")])
def test_the_chart(report: BenchReport, tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    require_plotting(tmp_path / name)
    draw_roofline(report, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    if name.endswith("svg"):
        assert b"ties" in content


def test_the_chart_names_the_gpu(report: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpus = (Gpu("One", "9.0", 80, 132), Gpu("Another", "9.0", 80, 132))
    on_gpu = replace(
        report,
        backend=replace(report.backend, device="cuda:1"),
        environment=replace(report.environment, gpus=gpus),
        timings=tuple(replace(t, by_hand_seconds=None) for t in report.timings),
    )
    draw_roofline(on_gpu, tmp_path / "chart.svg")
    assert "Another" in (tmp_path / "chart.svg").read_text()
