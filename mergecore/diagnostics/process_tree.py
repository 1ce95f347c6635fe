"""Run a program and see what it took: time, CPU time and memory of it and all its descendants."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mergecore.errors import RunError

if TYPE_CHECKING:
    import resource

INTERVAL_S = 0.1
SAID_LINES = 5
"""How much of what a failed program said is told."""
_PROC = Path("/proc")
_CAN_WATCH = (_PROC / "self/smaps_rollup").exists()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took."""

    wall_s: float
    cpu_s: float
    """Of all processes of the tree, those included that nobody waited for."""
    peak_bytes: int | None
    """Most of the proportional set size, summed over the tree: pages that processes share count once. None where the
    system doesn't tell.
    """
    peak_bytes_without_files: int | None
    """The same without mapped files, whose pages the kernel can drop."""


@dataclass(slots=True)
class _Watch:
    """What was seen of the tree while it ran."""

    peak_bytes: int = 0
    peak_bytes_without_files: int = 0
    cpu_s: dict[int, float] = field(default_factory=dict)
    """By process, when it was last seen."""
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self, root: int) -> None:
        """Sample until `done`. Reading the sizes of a large process costs it time: at most a twentieth is taken."""
        pause_s = 0.0
        while _CAN_WATCH and not self.done.wait(pause_s):
            start = time.monotonic()
            seen = _tree(root)
            self.cpu_s |= {pid: stat.cpu_s for pid, stat in seen.items()}
            sizes = [_memory(pid) for pid in seen]
            self.peak_bytes = max(self.peak_bytes, sum(total for total, _ in sizes))
            self.peak_bytes_without_files = max(self.peak_bytes_without_files, sum(total - f for total, f in sizes))
            pause_s = max(INTERVAL_S, 20 * (time.monotonic() - start))


def require_measuring() -> None:
    """Raise RunError where the system doesn't tell what a process took."""
    if not hasattr(os, "wait4"):
        raise RunError.at("bench merge", "this system can't measure processes", "Linux and macOS can")


def run(name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Usage:
    """Run to the end. Raises RunError, with the last of what it said, if it can't be started or fails."""
    watch = _Watch()
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        except OSError as error:
            raise RunError.at(name, f"`{command[0]}` can't be run: {error.strerror}") from error
        status, used = _wait(process, watch)
        wall_s = time.perf_counter() - began
        if status:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-SAID_LINES:]
            raise RunError.at(name, "\n".join([f"ended with {status}", *said]))
    # A worker that was killed and not waited for is missing in the one sum, the last moments in the other.
    cpu_s = max(used.ru_utime + used.ru_stime, sum(watch.cpu_s.values()))
    if not _CAN_WATCH:
        return Usage(wall_s, cpu_s, None, None)
    return Usage(wall_s, cpu_s, watch.peak_bytes, watch.peak_bytes_without_files)


def _wait(process: subprocess.Popen[bytes], watch: _Watch) -> tuple[int, resource.struct_rusage]:
    """Watch the process until it ends: its exit status, and what it used. It is killed if waiting is interrupted."""
    watcher = threading.Thread(target=watch.watch, args=(process.pid,))
    watcher.start()
    try:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        watch.done.set()
        watcher.join()
    return process.returncode, used


class _Stat(NamedTuple):
    parent: int
    cpu_s: float


def _tree(root: int) -> dict[int, _Stat]:
    """The process and its descendants."""
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    stats = {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return {pid: stats[pid] for pid in found if pid in stats}


def _stat(pid: int) -> _Stat | None:
    """None of a process that has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # before it is the name, which may hold spaces
    return _Stat(int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def _memory(pid: int) -> tuple[int, int]:
    """Proportional set size in bytes: all of it, and the part in mapped files. 0 of a process that has ended."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines[1:])}
    return sizes.get("Pss", 0), sizes.get("Pss_File", 0)
