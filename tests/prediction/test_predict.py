"""The prediction of a merge's time: what is sampled, what is made of it, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_device import StandIn
from typer.testing import CliRunner

import mergecore
from mergecore import Result, api, merge, plan, run
from mergecore.prediction import disk, predict
from mergecore.prediction.disk import ReadSpeed, read_speed, write_speed
from mergecore.prediction.predict import Prediction, can_predict
from mergecore.stream.backend import Backend
from mergecore.stream.devices import Devices
from mergecore_cli.main import app

Config = Callable[[str], dict[str, Any]]


@pytest.fixture
def config(make_model: Any) -> Config:
    """config(method) -> a merge of two models into a base."""
    base, *tuned = (make_model(name, seed=i) for i, name in enumerate("bxy"))

    def of(method: str) -> dict[str, Any]:
        return {
            "merge_method": method,
            "base_model": str(base),
            "models": [{"model": str(model)} for model in tuned],
            "parameters": {"weight": 1.0, "density": 0.5},
        }

    return of


def prediction(**parts: float) -> Prediction:
    known = {"startup_s": 1, "read_s": 2, "compute_s": 4, "write_s": 3, "cached": 0.5, "ns_per_element": 14}
    return Prediction(**(known | parts), workers=2)  # type: ignore[arg-type]


class TestPrediction:
    def test_writing_goes_on_beside_reading_and_arithmetic(self) -> None:
        assert prediction().seconds == 1 + 2 + 4
        assert prediction(write_s=10).seconds == 1 + 10

    def test_gpus_read_and_compute_at_the_same_time(self) -> None:
        assert replace(prediction(), on_gpus=True).seconds == 1 + 4
        assert replace(prediction(read_s=5), on_gpus=True).seconds == 1 + 5

    @pytest.mark.parametrize(
        ("part", "name"),
        [("startup_s", "start-up"), ("read_s", "reading"), ("compute_s", "arithmetic"), ("write_s", "writing")],
    )
    def test_bound_by_what_takes_longest(self, part: str, name: str) -> None:
        assert prediction(**{part: 100}).bound == name

    def test_parts_follow_from_speeds(self, config: Config) -> None:
        made = plan(config("linear"))
        n = sum(tensor.n for tensor in made.tensors)
        found = predict._prediction(made, ReadSpeed(0.75, 1e6), 2e6, workers=4, startup_s=-0.1, s_per_element=5e-9)
        assert found.read_s == pytest.approx(made.read_bytes / 4 / 1e6)
        assert found.write_s == pytest.approx(made.write_bytes / 2e6)
        assert found.compute_s == pytest.approx(n * 5e-9 + len(made.tensors) * predict._TENSOR_S / 4)
        assert (found.startup_s, found.cached) == (0, 0.75)
        assert found.ns_per_element == pytest.approx(20)


class TestSample:
    def test_is_spread_over_the_elements(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        made = plan(config("ties"))
        sample = predict._sampled(made, 12, 100)
        assert sample.tensors[0].name == made.tensors[0].name
        assert sample.tensors[-1].name == made.tensors[-1].name
        assert all(tensor.n <= 100 and tensor.columns in (24, 40) for tensor in sample.tensors)
        ends = [tensor.offset_bytes + tensor.n_bytes for tensor in sample.tensors]
        assert [0, *ends] == [*(tensor.offset_bytes for tensor in sample.tensors), sample.shards[0].n_bytes]

    @pytest.mark.parametrize("trim", ["tensor", "global"])
    def test_is_carried_out_and_leaves_nothing(self, config: Config, tmp_path: Path, trim: str) -> None:
        source = config("ties")
        source["parameters"]["trim"] = trim
        (tmp_path / "disk").mkdir()
        found = mergecore.predict_time(plan(source), tmp_path / "disk" / "out", workers=1)
        assert found is not None
        assert 0 < found.ns_per_element < 1e6
        assert found.compute_s > 0
        assert found.write_s > 0
        assert not list((tmp_path / "disk").iterdir())

    def test_on_a_device(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        device = StandIn(delay_s=0.002)
        monkeypatch.setattr(api, "choose_backend", lambda backend, device: Backend("torch", "cpu", ""))
        monkeypatch.setattr(api, "_start_devices", lambda *_, **__: Devices([device], readers=1))
        (tmp_path / "disk").mkdir()
        try:
            found = mergecore.predict_time(plan(config("ties")), tmp_path / "disk" / "out", device="cuda")
        finally:
            device.close()
        assert found is not None
        assert found.on_gpus
        assert found.compute_s > 0
        assert not list((tmp_path / "disk").iterdir())

    def test_without_the_inputs_there_is_none(self, config: Config, tmp_path: Path) -> None:
        made = plan(config("linear"))
        assert can_predict(made)
        (tmp_path / "x" / "model.safetensors").unlink()
        assert not can_predict(made)
        assert mergecore.predict_time(made, tmp_path, workers=1) is None


class TestDisk:
    def test_what_was_just_written_is_cached(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(1 << 20))
        assert read_speed([str(tmp_path / "file")], 2) == ReadSpeed(1.0, float("inf"))

    def test_what_is_not_cached_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "_is_cached", lambda path, offset_bytes: offset_bytes < 1 << 19)
        files = [tmp_path / str(i) for i in range(20)]
        for file in files:
            file.write_bytes(bytes(1 << 20))
        found = read_speed([str(file) for file in files], 2)
        assert found.cached == 0.5
        assert 0 < found.bytes_per_s < float("inf")

    def test_writing_leaves_nothing(self, tmp_path: Path) -> None:
        assert write_speed(tmp_path) > 0
        assert not list(tmp_path.iterdir())


class TestCommands:
    @pytest.fixture
    def file(self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A config whose merge counts as long."""
        monkeypatch.setattr(predict, "PROBE_BYTES", 0)
        for module in (api, run):
            monkeypatch.setattr(module, "predict_or_none", lambda *_, **__: prediction())
        path = tmp_path / "merge.yml"
        path.write_text(json.dumps(config("ties")))
        return str(path)

    def test_plan_tells_the_time_on_gpus(self, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[dict[str, Any]] = []

        def predicted(*_: Any, **options: Any) -> Prediction:
            asked.append(options)
            return replace(prediction(), on_gpus=True)

        monkeypatch.setattr(mergecore.api, "predict_time", predicted)
        told = CliRunner().invoke(app, ["plan", file, "--device", "cuda:0", "--device-memory", "4GB"]).stdout
        assert "(14 ns per element, on GPUs)" in " ".join(told.split())
        assert "for cuda:0" in told
        assert asked == [{"device": "cuda:0", "workers": None, "memory": "1GiB", "device_memory": "4GB"}]

    def test_plan_tells_the_time(self, file: str) -> None:
        told = " ".join(CliRunner().invoke(app, ["plan", file]).stdout.split())
        assert "time about 7 s, bound by arithmetic (14 ns per element, 2 workers)" in told
        assert "read 2.0 s (50% of the inputs in the page cache)" in told

    def test_plan_tells_it_to_programs(self, file: str) -> None:
        facts = json.loads(CliRunner().invoke(app, ["plan", file, "--json"]).stdout)
        assert facts["time"]["seconds"] == 7
        assert facts["time"]["bound"] == "arithmetic"
        assert facts["time"]["write_s"] == 3

    def test_no_probe(self, file: str) -> None:
        assert json.loads(CliRunner().invoke(app, ["plan", file, "--json", "--no-probe"]).stdout)["time"] is None

    def test_a_long_merge_compares(self, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "_LONG_BYTES", 0)
        out = tmp_path / "out"
        done = CliRunner().invoke(app, ["merge", file, str(out), "-j", "0"])
        assert "This will take about 6 s" in done.stderr
        assert " s, 6.0 s predicted, " in done.stderr
        assert json.loads((out / "mergecore.json").read_text())["work"]["predicted_seconds"] == 6.0

    def test_a_short_merge_is_not_probed(self, config: Config, tmp_path: Path) -> None:
        told: list[Prediction] = []
        result: Result = merge(config("linear"), tmp_path / "out", workers=0, on_prediction=told.append)
        assert (told, result.report.predicted_seconds) == ([], None)
