"""How much memory is free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN_BYTES = 8 << 30
"""Taken to be free where the system doesn't tell."""
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory of the device that can be used now. What torch keeps of a GPU's for later is let go first."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min(_host_limits(), default=UNKNOWN_BYTES)


def _host_limits() -> Iterator[int]:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        yield int(fields["MemAvailable"].split()[0]) * 1024
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    yield from _container_limit()


def _container_limit() -> Iterator[int]:
    """What a container's limit leaves."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists():
        text = limit.read_text(encoding="ascii").strip()
        if text != "max":
            yield int(text) - int(used.read_text(encoding="ascii"))
