"""Worker processes and the queue of jobs that they share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Protocol

from mergecore.errors import RunError

if TYPE_CHECKING:
    from mergecore.stream.job import Job, OnProgress, Outcome, Setup

_BATCHES_AHEAD = 2
"""That a worker holds, so that it needn't wait for the next one."""
_BATCH_ELEMENTS = 1 << 18
_BATCH_JOBS = 64
"""At most in a batch of small jobs: to send one job takes longer than merging a tensor of a few elements."""


class Pool(Protocol):
    """Something that does jobs."""

    workers: int
    """Processes that share them; 0: it is this one."""

    def run(self, setup: Setup, jobs: Iterable[Job], on_progress: OnProgress) -> Iterator[Outcome]:
        """Do all jobs, in any order; gives what each did. Raises the first error, a MergeError where it is one."""

    def close(self) -> None:
        """End all workers, whatever they do."""


class ThisProcess:
    """Does the jobs itself, one after the other."""

    workers = 0

    def run(self, setup: Setup, jobs: Iterable[Job], on_progress: OnProgress) -> Iterator[Outcome]:
        from mergecore.stream.merger import Merger  # loads torch

        merger = Merger(setup)
        try:
            for job in jobs:
                yield merger.run(job, on_progress)
        finally:
            merger.close()

    def close(self) -> None:
        """There is nothing to end."""


class Processes:
    """Worker processes. They load torch while the merge is planned, if they are made before."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        pipes = [Pipe() for _ in range(workers)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = _launch([theirs for _, theirs in pipes])
        for _, theirs in pipes:
            theirs.close()

    def run(self, setup: Setup, jobs: Iterable[Job], on_progress: OnProgress) -> Iterator[Outcome]:
        queue = deque(batches(jobs))
        busy: dict[Connection, deque[list[Job]]] = {connection: deque() for connection in self._connections}
        for connection in busy:
            self._send(connection, setup)
        for connection in [*busy] * _BATCHES_AHEAD:
            if queue:
                self._hand_out(queue, connection, busy)
        while any(busy.values()):
            ready = wait([c for c, batches_there in busy.items() if batches_there])
            for connection in [c for c in busy if c in ready]:
                outcomes = self._receive(connection, on_progress)
                if outcomes is None:
                    continue
                done = busy[connection].popleft()  # a worker does its batches in their order
                if queue:
                    self._hand_out(queue, connection, busy)
                for job, outcome in zip(done, outcomes, strict=True):
                    yield replace(outcome, job=job)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # with the workers that it forked
            process.wait()

    def _hand_out(
        self, queue: deque[list[Job]], connection: Connection, busy: dict[Connection, deque[list[Job]]]
    ) -> None:
        busy[connection].append(queue.popleft())
        self._send(connection, busy[connection][-1])

    def _send(self, connection: Connection, message: object) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def _receive(self, connection: Connection, on_progress: OnProgress) -> list[Outcome] | None:
        """The outcomes of a finished batch; None for progress in between."""
        try:
            kind, *content = connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if kind == "progress":
            on_progress(*content)
            return None
        if kind == "refused":
            error, problems = content
            raise error(*problems)
        if kind == "crashed":
            raise RuntimeError(content[0])
        outcomes: list[Outcome] = content[0]
        return outcomes

    def _died(self) -> RunError:
        return RunError.at(
            "",
            "a worker process ended before its work was done",
            "if the system ran out of memory, try fewer --workers or a smaller --memory",
        )


def batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """The jobs in their order, small ones together."""
    batch: list[Job] = []
    elements = 0
    for job in jobs:
        n = job.stop - job.start
        if batch and (elements + n > _BATCH_ELEMENTS or len(batch) == _BATCH_JOBS):
            yield batch
            batch, elements = [], 0
        batch.append(job)
        elements += n
    if batch:
        yield batch


def start_pool(workers: int | None = None) -> Pool:
    """So many worker processes on the CPU, None: one per core; 0: this process does the work."""
    count = default_workers() if workers is None else workers
    return Processes(count) if count else ThisProcess()


def default_workers() -> int:
    """One per core that this process may use."""
    if sys.platform == "win32":  # processes there can't be handed a connection by its number
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launch(connections: list[Connection]) -> list[subprocess.Popen[bytes]]:
    """One process that forks the others, or, where forking a process that has loaded torch isn't safe, one for each."""
    groups = [connections] if sys.platform == "linux" else [[connection] for connection in connections]
    return [_start([connection.fileno() for connection in group]) for group in groups]


def _start(descriptors: list[int]) -> subprocess.Popen[bytes]:
    code = (
        "import gc, sys\n"
        "gc.disable()\n"  # loading torch makes no garbage, and to search for it takes a tenth of the time
        f"sys.path[:] = {sys.path!r}\n"
        "from mergecore.stream.worker import main\n"
        f"main({descriptors!r})"
    )
    # One thread per process: the work is spread over processes. A session of their own keeps Ctrl-C from them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
