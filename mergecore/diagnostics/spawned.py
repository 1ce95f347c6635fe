"""Processes for work beside this one."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def spawned(processes: int) -> ProcessPoolExecutor:
    """So many fresh processes, each started when there is work for it. Ctrl-C reaches only this one."""
    return ProcessPoolExecutor(processes, get_context("spawn"), _ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
