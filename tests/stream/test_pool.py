"""Worker processes: that they do all jobs, and what is said when one is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mergecore import PlanError, RunError, merge
from mergecore.stream import pool as pools
from mergecore.stream.job import Setup
from mergecore.stream.pool import Processes, default_workers


def source(*models: Path) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}


def test_default_is_one_worker_per_core() -> None:
    assert default_workers() == len(os.sched_getaffinity(0))


def test_a_killed_worker_is_told(make_model, tmp_path: Path, monkeypatch) -> None:
    class Killed(Processes):
        def run(self, setup: Setup, jobs: Any, on_progress: Any) -> Any:
            for process in self._processes:
                os.killpg(process.pid, signal.SIGKILL)
            return super().run(setup, jobs, on_progress)

    monkeypatch.setattr(pools, "Processes", Killed)
    with pytest.raises(RunError, match="a worker process ended before its work was done .hint: if the system ran out"):
        merge(source(make_model("a")), tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_errors_of_workers_arrive_as_they_are(make_model, llama, tmp_path: Path) -> None:
    broken = llama()
    broken["model.norm.weight"][0] = float("nan")
    with pytest.raises(RunError, match="`model.norm.weight` holds NaN or infinite values"):
        merge(source(make_model("a"), make_model("b", broken)), tmp_path / "out", workers=2)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_device_that_is_not_there(make_model, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--device: `banana` can't be used: .*leave it out to merge on the CPU"):
        merge(source(make_model("a")), tmp_path / "out", device="banana", workers=0)


def test_too_little_memory(make_model, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"--memory: 0.005 MB is too little for 2 workers: at least [\d.]+ MB are needed"
    ):
        merge(source(make_model("a")), tmp_path / "out", workers=2, memory=5000)
    assert not (tmp_path / "out").exists()


def test_progress_and_report_count_every_byte(make_model, tmp_path: Path) -> None:
    moved = [0, 0]

    def count(read: int, written: int) -> None:
        moved[0] += read
        moved[1] += written

    result = merge(source(make_model("a"), make_model("b")), tmp_path / "out", workers=0, on_progress=count)
    assert moved == [result.report.read_bytes, result.report.written_bytes]
    assert result.report.read_bytes == result.plan.read_bytes
    assert result.report.written_bytes == sum(t.n_bytes for t in result.plan.tensors)


def test_a_script_without_a_main_guard_can_merge(make_model, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        f"import mergecore\nmergecore.merge({source(make_model('a'))!r}, 'out', workers=2)\nprint('done')\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
