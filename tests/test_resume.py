"""Merges that are interrupted: killed, ended, out of disk. They go on where they were, and the output is the same."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_cli import ForkedCommands

import mergecore
from mergecore import PlanError, RunError, merge
from mergecore.output import folder as output_folder
from mergecore.stream import execute, pool, recorder, writer
from mergecore.stream.journal import JOURNAL, Journal, read_history
from mergecore.stream.writer import PARTIAL

KILLS = 20
FULL = OSError(errno.ENOSPC, "No space left on device")


def linear(*models: object, name: str | None = None, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": entries} | ({} if name is None else {"name": name}) | more


def dare(base: Path, *models: Path) -> dict[str, Any]:
    entries = [{"model": str(model)} for model in models]
    parameters = {"weight": 0.5, "density": 0.4}
    return {"merge_method": "dare_ties", "base_model": str(base), "models": entries, "parameters": parameters}


def outcome(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, but what tells times and places."""
    skipped = ("mergecore.json", "README.md", "mergecore_config.yml")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in skipped}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "mergecore.json").read_text())


@pytest.fixture(autouse=True)
def slow_disk(monkeypatch) -> None:
    """What is done is recorded before an interrupted merge ends, however long the disk of a busy machine takes."""
    monkeypatch.setattr(recorder, "_WAIT_S", 60.0)


@pytest.fixture
def models(make_model) -> list[Path]:
    return [make_model(name, seed=seed) for seed, name in enumerate("xyz")]


@pytest.fixture
def fails_after(monkeypatch) -> Callable[..., None]:
    """fails_after(n, error): writing raises `error` when n tiles have been written; None: not any more."""
    write = writer.write_at

    def prepare(n: int | None, error: BaseException = FULL) -> None:
        left = [n]

        def write_at(file: int, data: memoryview, offset_bytes: int) -> None:
            if left[0] is not None and offset_bytes:  # headers lie at 0
                if left[0] == 0:
                    raise error
                left[0] -= 1
            write(file, data, offset_bytes)

        monkeypatch.setattr(writer, "write_at", write_at)

    return prepare


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of 6 MB, so that a merge takes a while."""
    from conftest import llama_tensors, save_sharded

    folders = []
    for seed, name in enumerate(("base", "a", "b")):
        folder = tmp_path_factory.mktemp(name)
        tensors = llama_tensors(8, seed=seed, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(seed)
        for i in range(40):
            shape = (290 + i, 256)
            tensors[f"model.extra.{i}"] = torch.randn(shape, generator=generator).bfloat16()
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 8, "torch_dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config))
        save_sharded(folder, tensors, 2)
        folders.append(folder)
    return folders


def lines(file: Path) -> int:
    """Of a file that may not be there."""
    try:
        return file.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_killed_at_any_moment_it_goes_on_and_the_bytes_are_the_same(large: list[Path], tmp_path: Path) -> None:
    """Each run is killed when it has done so many jobs, drawn at random: the machine's speed is no matter."""
    config = tmp_path / "config.yml"
    config.write_text(json.dumps(dare(*large)))  # JSON is YAML
    most_jobs = len(execute.jobs(mergecore.plan(dare(*large)))) // 3
    draw = random.Random(7)
    kills = resumed = finished = 0
    with ForkedCommands(tmp_path / "stderr") as commands:
        while kills < KILLS or not finished:
            out = tmp_path / f"out{finished}"
            wanted = lines(out / JOURNAL) + draw.randint(0, most_jobs)
            pid = commands.start("merge", config, out, "-j", 0, "--shard-size", "2MB")
            while lines(out / JOURNAL) < wanted and commands.runs(pid):
                time.sleep(0.004)
            time.sleep(draw.uniform(0, 0.02))
            if kills < KILLS:
                commands.interrupt(pid, draw.choice([signal.SIGKILL, signal.SIGTERM]))
            code, said = commands.wait()
            resumed += "Going on: an interrupted run has written" in said
            if code in (-signal.SIGKILL, 128 + signal.SIGTERM):
                kills += 1
                if (out / JOURNAL).exists() or not (out / "config.json").exists():
                    continue  # if not, it was killed when all was done
            else:
                assert code == 0, said
            finished += 1
            again = tmp_path / f"again{finished}"
            merge(dare(*large), again, seed=manifest(out)["seed"], workers=0, shard_size="2MB")
            assert outcome(out) == outcome(again)
            assert manifest(out)["tensors"] == manifest(again)["tensors"]
    assert resumed >= 3


def interrupted_command(config: Path, out: Path, number: int) -> tuple[int, str]:
    """Exit code and stderr of a merge with worker processes that gets a signal when its first jobs are recorded."""
    program = (
        "from mergecore.stream import recorder; recorder.INTERVAL_S = 0.005\n"
        "from mergecore_cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "merge", str(config), str(out), "-j", "2", "--seed", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not read_history(out).records and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_with_worker_processes(large: list[Path], tmp_path: Path, number: int, code: int) -> None:
    config = tmp_path / "config.yml"
    config.write_text(json.dumps(dare(*large)))
    for i in range(5):  # the merge may be done before the signal arrives
        out = tmp_path / f"out{i}"
        found, said = interrupted_command(config, out, number)
        if found:
            break
    assert found == code, said
    if number != signal.SIGKILL:
        assert f"What is done stays in {out}: the same command goes on from there" in said
        assert "Traceback" not in said
    assert not list(out.glob("*.safetensors"))
    result = merge(dare(*large), out, seed=5, workers=0)
    assert result.report.kept_bytes > 0
    merge(dare(*large), tmp_path / "again", seed=5, workers=0)
    assert outcome(out) == outcome(tmp_path / "again")


@pytest.mark.parametrize("workers", [0, 1])
def test_disk_full(models, tmp_path: Path, fails_after, workers: int) -> None:
    """What writing raises stands in for a disk that is full; for worker processes, a limit on the size of files."""
    out = tmp_path / "out"
    if workers == 0:
        fails_after(9)
        with pytest.raises(RunError, match=r"the disk is full .hint: free some space, and give the same command again"):
            merge(linear(*models), out, workers=0)
        fails_after(None)
        assert len(read_history(out).records) == 9
    else:
        fails_after(None)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(RunError, match=r"model.safetensors.partial: can't be written: File too large"):
                merge(linear(*models), out, workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, old)
        assert not out.exists()  # nothing was written: the file's space could not be reserved
    merge(linear(*models), out, workers=0)
    merge(linear(*models), tmp_path / "again", workers=0)
    assert outcome(out) == outcome(tmp_path / "again")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs can't be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_real_disk_that_is_full(models, tmp_path: Path, disk: Path) -> None:
    filler = disk / "filler"
    needed = mergecore.plan(linear(*models)).write_bytes

    def fill(_: mergecore.plan) -> None:  # after the free space was checked
        filler.write_bytes(b"." * ((1 << 20) - needed // 2))

    with pytest.raises(RunError, match="the disk is full"):
        merge(linear(*models), disk / "out", workers=0, on_plan=fill)
    filler.unlink()
    result = merge(linear(*models), disk / "out", workers=0)
    assert 0 < result.report.kept_bytes < needed
    merge(linear(*models), tmp_path / "again", workers=0)
    assert outcome(disk / "out") == outcome(tmp_path / "again")


def test_a_real_disk_that_is_read_only(models, tmp_path: Path, disk: Path) -> None:
    model = disk / "model"
    shutil.copytree(models[0], model)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(RunError, match="out: can't be written: Read-only file system"):
        merge(linear(*models), disk / "out", workers=0)
    merge(linear(model, models[1]), tmp_path / "out", workers=0)  # reading is no matter
    merge(linear(*models[:2]), tmp_path / "again", workers=0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "again")


def interrupted(config: Any, out: Path, fails_after: Callable[..., None], tiles: int = 9, **options: Any) -> None:
    fails_after(tiles, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        merge(config, out, workers=0, **options)
    fails_after(None)


@pytest.mark.parametrize("tiles", [1, 5, 20])
def test_what_is_done_is_not_done_again(models, tmp_path: Path, fails_after, tiles: int) -> None:
    left, kept = [], []
    interrupted(linear(*models), tmp_path / "out", fails_after, tiles, on_left=left.append)
    assert left == [tmp_path / "out"]
    assert {path.name for path in left[0].iterdir()} == {"model.safetensors" + PARTIAL, JOURNAL}
    result = merge(linear(*models), tmp_path / "out", workers=0, on_resume=lambda _, n: kept.append(n))
    assert kept == [result.report.kept_bytes]
    assert result.report.kept_bytes + result.report.written_bytes == sum(t.n_bytes for t in result.plan.tensors)
    assert result.report.kept_bytes == sum(sorted((t.n_bytes for t in result.plan.tensors), reverse=True)[:tiles])
    assert not (tmp_path / "out" / JOURNAL).exists()
    merge(linear(*models), tmp_path / "again", workers=0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "again")
    assert manifest(tmp_path / "out")["tensors"] == manifest(tmp_path / "again")["tensors"]


def test_blocks_that_lie_in_several_jobs(models, tmp_path: Path, fails_after, monkeypatch) -> None:
    monkeypatch.setattr(execute, "SPAN", 100)
    interrupted(linear(*models), tmp_path / "out", fails_after)
    merge(linear(*models), tmp_path / "out", workers=0)
    monkeypatch.undo()
    merge(linear(*models), tmp_path / "again", workers=0)
    assert manifest(tmp_path / "out")["tensors"] == manifest(tmp_path / "again")["tensors"]


def test_nothing_is_left_where_nothing_was_written(models, tmp_path: Path, fails_after) -> None:
    left = []
    interrupted(linear(*models), tmp_path / "out", fails_after, 0, on_left=left.append)
    assert left == []
    assert not (tmp_path / "out").exists()


def test_a_survey_is_not_done_again(models, tmp_path: Path, fails_after) -> None:
    config = dare(*models) | {"merge_method": "ties"}
    config["parameters"] = {"weight": 0.5, "density": 0.4, "trim": "global"}
    interrupted(config, tmp_path / "out", fails_after, 0)
    plan = mergecore.plan(config)
    result = merge(config, tmp_path / "out", workers=0)
    assert result.report.read_bytes == plan.read_bytes
    assert "survey" not in manifest(tmp_path / "out")["work"]["steps"]
    again = merge(config, tmp_path / "again", workers=0)
    assert again.report.read_bytes == 3 * plan.read_bytes
    assert manifest(tmp_path / "again")["work"]["steps"]["survey"]["read_bytes"] == 2 * plan.read_bytes
    assert outcome(tmp_path / "out") == outcome(tmp_path / "again")


def restarted(config: Any, out: Path, **options: Any) -> list[str]:
    """Why a merge was begun anew. Its bytes are checked."""
    reasons: list[str] = []
    result = merge(config, out, workers=0, on_restart=lambda _, reason: reasons.append(reason), **options)
    assert result.report.kept_bytes == 0
    merge(config, out.parent / "again", workers=0, **options)
    assert outcome(out) == outcome(out.parent / "again")
    return reasons


def test_another_config_begins_anew(models, tmp_path: Path, fails_after) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    assert restarted(linear(*models, dtype="bfloat16"), tmp_path / "out") == ["the config has changed"]


def test_another_input_begins_anew(models, tmp_path: Path, fails_after) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    weights = models[1] / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert restarted(linear(*models), tmp_path / "out") == [f"the input {weights} has changed"]


def test_other_sizes_of_the_files_begin_anew(models, tmp_path: Path, fails_after) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    reasons = restarted(linear(*models), tmp_path / "out", shard_size="10KB")
    assert reasons == ["the sizes of the weight files have changed"]


def test_another_version_begins_anew(models, tmp_path: Path, fails_after, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mergecore.stream.identity.version", lambda name: "0.0.1")
        interrupted(linear(*models), tmp_path / "out", fails_after)
    (reason,) = restarted(linear(*models), tmp_path / "out")
    assert reason.startswith("it was begun by mergecore 0.0.1, and this is ")


def test_partial_files_that_are_gone(models, tmp_path: Path, fails_after) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    (tmp_path / "out" / ("model.safetensors" + PARTIAL)).unlink()
    assert restarted(linear(*models), tmp_path / "out") == ["model.safetensors is not what it left"]


def test_no_resume_begins_anew_without_a_word(models, tmp_path: Path, fails_after) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    assert restarted(linear(*models), tmp_path / "out", resume=False) == []


def test_a_drawn_seed_is_that_of_the_interrupted_run(models, tmp_path: Path, fails_after) -> None:
    config, plans = dare(*models), []
    interrupted(config, tmp_path / "out", fails_after, on_plan=plans.append)
    result = merge(config, tmp_path / "out", workers=0)
    assert result.report.kept_bytes > 0
    assert result.plan.seed == plans[0].seed == manifest(tmp_path / "out")["seed"]


def test_another_seed_begins_anew(models, tmp_path: Path, fails_after) -> None:
    interrupted(dare(*models), tmp_path / "out", fails_after, seed=3)
    assert restarted(dare(*models), tmp_path / "out", seed=4) == ["the seed was 3 and is 4"]


def test_another_run_in_the_same_folder(models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "out")
    with pytest.raises(RunError, match="out: another run of mergecore is writing to this folder"):
        merge(linear(*models), tmp_path / "out", workers=0)
    journal.discard()
    merge(linear(*models), tmp_path / "out", workers=0)


def test_nan_that_an_earlier_run_allowed(models, make_model, llama, tmp_path: Path, fails_after) -> None:
    broken = llama()
    broken["lm_head.weight"][3, 3] = float("nan")
    config = linear(models[0], make_model("broken", broken))
    interrupted(config, tmp_path / "out", fails_after, allow_nonfinite=True)
    with pytest.raises(RunError, match="`lm_head.weight` holds NaN"):
        merge(config, tmp_path / "out", workers=0)
    result = merge(config, tmp_path / "out", workers=0, allow_nonfinite=True)
    assert result.report.kept_bytes > 0
    assert list(result.report.nonfinite.values()) == [1]


STEPS = [(output_folder, name) for name in (
    "_remove_old_model", "publish_partial_files", "_copy_files", "write_whole", "manifest", "_sync_folder",
)]  # fmt: skip


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_at_the_very_end(
    models, tmp_path: Path, monkeypatch, module: Any, name: str, calls: int, overwrite: bool
) -> None:
    """When some files have their names and others don't. A model that was there before is gone or whole."""
    out = tmp_path / "out"
    if overwrite:
        merge(linear(*models[:2]), out, workers=0, shard_size="20KB")
    original = getattr(module, name)
    left = [calls]

    def fail(*args: Any, **options: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        try:
            merge(linear(*models), out, workers=0, shard_size="10KB", overwrite=overwrite)
        except KeyboardInterrupt:
            assert (out / JOURNAL).exists()
    if (out / JOURNAL).exists():
        result = merge(linear(*models), out, workers=0, shard_size="10KB", overwrite=overwrite)
        assert result.report.written_bytes == 0
    merge(linear(*models), tmp_path / "again", workers=0, shard_size="10KB")
    assert outcome(out) == outcome(tmp_path / "again")


def test_a_model_that_was_there_is_not_replaced_by_a_resumed_run(models, tmp_path: Path, fails_after) -> None:
    merge(linear(*models[:2]), tmp_path / "out", workers=0)
    before = outcome(tmp_path / "out")
    interrupted(linear(*models), tmp_path / "out", fails_after, overwrite=True)
    with pytest.raises(PlanError, match="is not empty .hint: --overwrite replaces the model in it"):
        merge(linear(*models), tmp_path / "out", workers=0)
    assert before.items() <= outcome(tmp_path / "out").items()
    result = merge(linear(*models), tmp_path / "out", workers=0, overwrite=True)
    assert result.report.kept_bytes > 0


def test_space_that_is_written_need_not_be_free(models, tmp_path: Path, fails_after, monkeypatch) -> None:
    interrupted(linear(*models), tmp_path / "out", fails_after)
    monkeypatch.setattr(output_folder, "free_bytes", lambda folder: 0)
    there = sum(path.stat().st_blocks * 512 for path in (tmp_path / "out").glob(f"*{PARTIAL}"))
    if there < mergecore.plan(linear(*models)).write_bytes:
        pytest.skip("this file system can't reserve space")
    merge(linear(*models), tmp_path / "out", workers=0)


CHAIN_TILES = 21 * 3


@pytest.mark.parametrize("tiles", [5, 21, 30, 42, 50, CHAIN_TILES - 1])
def test_a_chain_goes_on_at_the_stage_where_it_was(models, tmp_path: Path, fails_after, tiles: int) -> None:
    x, y, z = models
    config = [linear(x, y, name="one"), linear("one", z, name="two"), linear("two", x)]
    planned: list[Any] = []
    interrupted(config, tmp_path / "out", fails_after, tiles)
    result = merge(config, tmp_path / "out", workers=0, on_plan=planned.append)
    reports = [stage.report for stage in (*result.stages, result)]
    sizes = [sum(t.n_bytes for t in plan.tensors) for plan in planned]
    done = tiles // (CHAIN_TILES // 3)
    assert [report.written_bytes == 0 for report in reports[:done]] == [True] * done
    assert reports[done].written_bytes > 0
    assert (reports[done].written_bytes < sizes[done]) == (tiles % 21 != 0)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y", "z", "out"}
    merge(config, tmp_path / "again", workers=0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "again")


def test_a_chain_whose_input_changed_begins_anew(models, tmp_path: Path, fails_after) -> None:
    x, y, z = models
    config = [linear(x, y, name="one"), linear("one", z, name="two"), linear("two", x)]
    interrupted(config, tmp_path / "out", fails_after, 50)
    os.utime(y / "model.safetensors", ns=(1, 1))
    reasons: list[tuple[str, str]] = []
    result = merge(config, tmp_path / "out", workers=0, on_restart=lambda f, why: reasons.append((f.name, why)))
    assert all(stage.report.kept_bytes == 0 for stage in (*result.stages, result))
    assert reasons == [("two", "an earlier stage has changed"), ("out", "an earlier stage has changed")]


def test_an_orphaned_worker_ends(large: list[Path], tmp_path: Path) -> None:
    """Workers of a process that was killed see it at their next job."""
    processes = pool.Processes(1)
    (process,) = processes._processes
    for connection in processes._connections:
        connection.close()
    assert process.wait(timeout=20) == 0
