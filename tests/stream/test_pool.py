"""Worker processes: that they do all jobs, and what is said when one is gone."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_family import load_weights, same_bytes

from mergecore import PlanError, RunError, merge, plan
from mergecore.stream import pool as pools
from mergecore.stream.job import Job, Setup
from mergecore.stream.pool import Processes, batches, default_workers
from mergecore.stream.worker import throttled


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


def test_what_is_done_when_a_worker_is_killed_is_kept(make_model, tmp_path: Path, monkeypatch) -> None:
    """As the system does when memory runs out: in the middle of a merge."""

    class Killed(Processes):
        def run(self, setup: Setup, jobs: Any, on_progress: Any) -> Any:
            for outcome in super().run(setup, jobs, on_progress):
                yield outcome
                for process in self._processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

    config = source(make_model("a", n_layers=80), make_model("b", n_layers=80, seed=1))  # more jobs than are sent ahead
    with monkeypatch.context() as patch:
        patch.setattr(pools, "Processes", Killed)
        with pytest.raises(RunError, match="a worker process ended before its work was done"):
            merge(config, tmp_path / "out", workers=2)
    result = merge(config, tmp_path / "out", workers=2)
    assert result.report.kept_bytes > 0
    assert result.report.written_bytes > 0
    merge(config, tmp_path / "again", workers=0)
    written, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert written == again


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


def test_small_jobs_go_together(make_model) -> None:
    """To send a job takes longer than to merge a few elements."""
    tensor = plan(source(make_model("a"))).tensors[0]
    sizes = [1 << 20, 1 << 18, *[1 << 17] * 3, *[10] * 100]
    made = list(batches(Job(tensor, 0, size) for size in sizes))
    assert [len(batch) for batch in made] == [1, 1, 2, 64, 37]
    assert [job.stop for batch in made for job in batch] == sizes


def test_progress_of_small_jobs_arrives(make_model, tmp_path: Path, monkeypatch) -> None:
    """A merge of many jobs that each take less than the time between two reports."""
    sent: list[tuple[int, int]] = []
    clock = iter(range(1000))
    monkeypatch.setattr("mergecore.stream.worker.time.monotonic", lambda: 0.06 * next(clock))
    report = throttled(SimpleNamespace(send=lambda message: sent.append(message[1:])))
    for _ in range(10):
        report(5, 0)
        report(0, 3)
    assert sent == [(5, 3)] * 10


def test_jobs_are_spread_over_the_workers_first(make_model, monkeypatch) -> None:
    tensor = plan(source(make_model("a"))).tensors[0]
    pool = Processes(2)
    handed: list[Any] = []
    monkeypatch.setattr(pool, "_send", lambda connection, message: handed.append((connection, message)))
    monkeypatch.setattr(pool, "_receive", lambda *_: pytest.fail("nothing was sent"))
    monkeypatch.setattr(pools, "wait", lambda connections: pytest.fail(f"{len(connections)} are busy"))
    try:
        with pytest.raises(pytest.fail.Exception, match="2 are busy"):
            list(pool.run(None, [Job(tensor, 0, 1 << 20)] * 2, lambda *_: None))  # type: ignore[arg-type]
    finally:
        pool.close()
    assert [type(message) for _, message in handed[2:]] == [list, list]
    assert handed[2][0] is not handed[3][0]


def test_a_pool_does_several_merges(make_model, tmp_path: Path) -> None:
    configs = [source(make_model(name, seed=i)) for i, name in enumerate("ab")]
    pool = Processes(1)
    try:
        for i, config in enumerate(configs):
            merge(config, tmp_path / f"{i}", pool=pool)
            merge(config, tmp_path / f"alone{i}", workers=0)
            assert same_bytes(load_weights(tmp_path / f"{i}"), load_weights(tmp_path / f"alone{i}"))
    finally:
        pool.close()
