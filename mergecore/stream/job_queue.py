"""The jobs that several devices share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock

from mergecore.stream.job import Job
from mergecore.stream.layout import span_bytes


class JobQueue:
    """Jobs in order, given out in batches. For several threads."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = deque(jobs)
        self._lock = Lock()

    def take(self, most_bytes: int, most_elements: int) -> list[Job]:
        """The next jobs that fit together into so much of a frame; at least one, if there are any."""
        with self._lock:
            taken: list[Job] = []
            n_bytes = elements = 0
            while self._jobs:
                job = self._jobs[0]
                n_bytes += span_bytes(job.tensor, job.stop - job.start)
                elements += job.stop - job.start
                if taken and (n_bytes > most_bytes or elements > most_elements):
                    break
                taken.append(self._jobs.popleft())
            return taken

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that were taken and are to be done again."""
        with self._lock:
            self._jobs.extendleft(reversed(list(jobs)))
