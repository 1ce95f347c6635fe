"""Brings what is done to the disk: the weights first, then the journal's lines that vouch for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import TracebackType

from mergecore.errors import MergeError
from mergecore.plan.plan import OutputTensor, Plan, Shard
from mergecore.stream.digests import Digests, blocks_within, hash_stored
from mergecore.stream.job import Job, Outcome
from mergecore.stream.journal import Journal, Record
from mergecore.stream.positional_io import open_to_read
from mergecore.stream.writer import partial_path, sync_file, telling_write_errors

INTERVAL_S = 0.5
"""Between two batches. What was done after the last one is lost when the process is killed."""
_WAIT_S = 1.0
"""For the last batch, when a merge is interrupted."""


class Done:
    """What is done of a plan, by earlier runs and by this one."""

    def __init__(self, plan: Plan, earlier: Sequence[Record]) -> None:
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._earlier: dict[str, list[Record]] = {}
        self.digests = Digests()
        self.nonfinite: dict[tuple[str, str], int] = {}
        """(tensor, model) -> values that are NaN or infinite, where there are any."""
        for record in earlier:
            self._earlier.setdefault(record.tensor, []).append(record)
            self.add(record)
        self.kept_bytes = sum(
            (record.stop - record.start) * self._tensors[record.tensor].dtype.size for record in earlier
        )
        """Written by earlier runs."""

    def has(self, job: Job) -> bool:
        """Whether an earlier run did a job."""
        found = self._earlier.get(job.tensor.name, ())
        return any(record.start <= job.start and job.stop <= record.stop for record in found)

    def add(self, record: Record) -> None:
        self.digests.add(self._tensors[record.tensor], record.blocks)
        for tensor, model, count in record.nonfinite:
            self.nonfinite[tensor, model] = self.nonfinite.get((tensor, model), 0) + count


class Recorder:
    """Records the outcomes of jobs, in a thread of its own: waiting for a disk would hold up the workers.

    As a context it ends when all is recorded; after an error, and where the user interrupts the merge, it waits no
    longer than a second for that.
    """

    def __init__(self, journal: Journal, folder: Path, shards: Sequence[Shard], done: Done) -> None:
        self._journal = journal
        self._paths = [partial_path(folder, shard) for shard in shards]
        self._done = done
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._closing = Event()
        self._error: MergeError | None = None
        self._thread = Thread(target=self._work, daemon=True)  # a disk that hangs shall not keep the process

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join(None if kind is None else _WAIT_S)
        if kind is None and self._error is not None:
            raise self._error

    def add(self, outcome: Outcome) -> None:
        """A job is done. Raises RunError if an earlier one could not be recorded, when the disk is full for one."""
        if self._error is not None:
            raise self._error
        self._outcomes.put(outcome)

    def digests(self, tensors: Sequence[OutputTensor]) -> dict[str, str]:
        """Of all tensors, when all is recorded. Blocks that lie in several jobs are read again. Raises RunError."""
        for tensor in tensors:
            self._done.digests.add(tensor, self._hash(tensor, self._done.digests.missing(tensor)))
        return {tensor.name: self._done.digests[tensor.name] for tensor in tensors}

    def _work(self) -> None:
        try:
            while not self._closing.wait(INTERVAL_S):
                self._flush()
            self._flush()
        except MergeError as error:
            self._error = error

    def _flush(self) -> None:
        jobs, records = [], []
        for outcome in self._waiting():
            assert outcome.job is not None
            jobs.append(outcome.job)
            records.append(Record.of(outcome, self._all_blocks(outcome.job, outcome.blocks)))
        for shard in {job.tensor.shard for job in jobs}:
            sync_file(self._paths[shard])
        if records:
            self._journal.add(records)
        for record in records:
            self._done.add(record)

    def _waiting(self) -> list[Outcome]:
        found = []
        while True:
            try:
                found.append(self._outcomes.get_nowait())
            except Empty:
                return found

    def _all_blocks(self, job: Job, blocks: Mapping[int, bytes]) -> dict[int, bytes]:
        """The hashes of all blocks in a job: those that weren't taken while it was written are taken now."""
        size, n_bytes = job.tensor.dtype.size, job.tensor.n_bytes
        wanted = blocks_within(job.start * size, job.stop * size, n_bytes)
        return {**blocks, **self._hash(job.tensor, [block for block in wanted if block not in blocks])}

    def _hash(self, tensor: OutputTensor, blocks: Sequence[int]) -> dict[int, bytes]:
        if not blocks:
            return {}
        path = self._paths[tensor.shard]
        with telling_write_errors(path):
            file = open_to_read(str(path))
            try:
                return hash_stored(file, tensor.offset_bytes, tensor.n_bytes, blocks)
            finally:
                os.close(file)
