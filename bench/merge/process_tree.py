"""Run a command as a whole and see what it took: time, CPU time and memory of it and all its descendants."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL_S = 0.1


@dataclass(frozen=True)
class Usage:
    """What one run took."""

    wall_s: float
    cpu_s: float
    """Of all processes of the tree that were waited for."""
    peak_bytes: int
    """Most of the proportional set size, summed over the tree: pages that processes share count once."""
    peak_bytes_without_files: int
    """The same without mapped files, whose pages the kernel can drop."""


@dataclass
class _Peak:
    """The largest sums seen so far."""

    total: int = 0
    without_files: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self, pid: int) -> None:
        """Sample until `done`. Reading the sizes of a large process costs it time: at most a twentieth is taken."""
        pause_s = 0.0
        while not self.done.wait(pause_s):
            start = time.monotonic()
            sizes = [_memory(member) for member in _tree(pid)]
            self.total = max(self.total, sum(total for total, _ in sizes))
            self.without_files = max(self.without_files, sum(total - files for total, files in sizes))
            pause_s = max(INTERVAL_S, 20 * (time.monotonic() - start))


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> Usage:
    """Run to the end; RuntimeError with the end of what it said if it fails."""
    peak = _Peak()
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        watcher = threading.Thread(target=peak.watch, args=(process.pid,))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.done.set()
        watcher.join()
        if process.returncode:
            log.seek(0)
            said = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{said}")
    return Usage(wall_s, used.ru_utime + used.ru_stime, peak.total, peak.without_files)


def _tree(root: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def _parent(entry: Path) -> int | None:
    try:
        # The name, in parentheses, may hold spaces; state and parent follow it.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


def _memory(pid: int) -> tuple[int, int]:
    """Proportional set size in bytes: all of it, and the part in mapped files. 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines[1:])}
    return sizes.get("Pss", 0), sizes.get("Pss_File", 0)
