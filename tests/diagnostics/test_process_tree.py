"""What a program took, and what is told of one that fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mergecore import RunError
from mergecore.diagnostics import process_tree
from mergecore.diagnostics.process_tree import require_measuring, run

HOLD = "import time; held = bytes(range(256)) * 200_000; time.sleep(0.5)"
"""Holds 51 MB for a while."""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")


@ON_LINUX
def test_time_and_memory_of_all_descendants() -> None:
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}]); sum(range(3_000_000))"
    usage = run("test", [sys.executable, "-c", command], {})
    assert 0.5 < usage.wall_s < 60
    assert usage.cpu_s > 0.01
    assert usage.peak_bytes is not None
    assert usage.peak_bytes_without_files is not None
    assert 51e6 < usage.peak_bytes_without_files <= usage.peak_bytes < 200e6


def test_the_environment_is_added_to() -> None:
    command = "import os; assert os.environ['ADDED'] == 'yes'; assert 'PATH' in os.environ"
    assert run("test", [sys.executable, "-c", command], {"ADDED": "yes"}).wall_s > 0


def test_where_memory_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_CAN_WATCH", False)
    usage = run("test", [sys.executable, "-c", ""], {})
    assert usage.cpu_s > 0
    assert usage.peak_bytes is None
    assert usage.peak_bytes_without_files is None


def test_failures_tell_the_last_that_was_said() -> None:
    command = "import sys; print(*'abcdefg', sep='\\n'); sys.exit(3)"
    with pytest.raises(RunError) as caught:
        run("mergekit", [sys.executable, "-c", command], {})
    assert str(caught.value) == "mergekit: ended with 3\nc\nd\ne\nf\ng"


def test_programs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="test: `.*none` can't be run: No such file or directory"):
        run("test", [tmp_path / "none"], {})


def test_an_interrupted_wait_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def interrupt(pid: int, options: int) -> Any:
        waited.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("test", [sys.executable, "-c", "import time; time.sleep(60)"], {})
    with pytest.raises(ProcessLookupError):
        os.kill(waited[0], 0)


def test_systems_that_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    require_measuring()
    monkeypatch.delattr(os, "wait4")
    with pytest.raises(RunError, match="this system can't measure processes .hint: Linux and macOS can"):
        require_measuring()
