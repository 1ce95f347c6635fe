"""Merges on GPUs: a driver thread for each, which share one queue of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from mergecore.errors import RunError
from mergecore.stream.accelerator import Accelerator, is_out_of_memory, open_gpus, telling_failures
from mergecore.stream.device_merger import DeviceMerger
from mergecore.stream.device_sizes import DeviceSizes
from mergecore.stream.job import Job, OnProgress, Outcome, Setup
from mergecore.stream.job_queue import JobQueue
from mergecore.stream.pipeline import HostBuffers, Pipeline, default_readers

FREE_SHARE = 0.8
"""Of the free memory of a device: what is used by default."""

_Message: TypeAlias = "Outcome | BaseException | tuple[int, int] | None"
"""What a driver tells: a job that is done, its failure, bytes read and written, or that it has ended."""


class Devices:
    """A Pool of devices."""

    workers = 1

    def __init__(
        self,
        accelerators: Sequence[Accelerator],
        *,
        device_memory_bytes: int | None = None,
        readers: int | None = None,
        choose_sizes: Callable[[int, Sequence[Job]], DeviceSizes] = DeviceSizes.within,
    ) -> None:
        """device_memory_bytes: of each device; None: 80 % of what is free. readers: threads that read for each."""
        self._accelerators = accelerators
        self._device_memory_bytes = device_memory_bytes
        self._readers = readers or default_readers()
        self._choose_sizes = choose_sizes

    def run(self, setup: Setup, jobs: Iterable[Job], on_progress: OnProgress) -> Iterator[Outcome]:
        """Do all jobs; the calls of `on_progress` come from the thread that draws the outcomes."""
        work = list(jobs)
        queue = JobQueue(work)
        messages: SimpleQueue[_Message] = SimpleQueue()
        host = HostBuffers.within(setup.budget_bytes, self._readers, devices=len(self._accelerators))
        drivers = [
            _Driver(setup, accelerator, queue, self._sizes(accelerator, work), host, messages.put)
            for accelerator in self._accelerators
        ]
        threads = [Thread(target=driver.run) for driver in drivers]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                match messages.get():
                    case Outcome() as outcome:
                        yield outcome
                    case BaseException() as error:
                        raise error
                    case (read, written):
                        on_progress(read, written)
                    case None:
                        running -= 1
        finally:
            for driver in drivers:
                driver.stop()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        """All threads end with their run."""

    def _sizes(self, accelerator: Accelerator, jobs: Sequence[Job]) -> DeviceSizes:
        with telling_failures(accelerator.device):
            memory = self._device_memory_bytes or int(FREE_SHARE * accelerator.free_bytes())
        return self._choose_sizes(memory, jobs)


class _StoppedError(Exception):
    """Ends a driver whose work nobody wants any more."""


class _Driver:
    """Does jobs on one device, in smaller frames and tiles if the device has less memory than was thought."""

    def __init__(
        self,
        setup: Setup,
        accelerator: Accelerator,
        queue: JobQueue,
        sizes: DeviceSizes,
        host: HostBuffers,
        tell: Callable[[_Message], None],
    ) -> None:
        self._setup, self._accelerator, self._queue = setup, accelerator, queue
        self._sizes, self._host = sizes, host
        self._tell = tell
        self._taken: dict[int, Job] = {}
        """Jobs that aren't done yet."""
        self._note = ""
        """Is told with each job that is done from then on."""
        self._pipeline: Pipeline | None = None
        self._is_stopped = False

    def run(self) -> None:
        """Until the queue is empty. At last it tells None, or what went wrong."""
        device = self._accelerator.device
        try:
            with telling_failures(device):
                while not self._finished():
                    self._note = f"{device} ran out of memory: merged on with smaller tiles"
                    self._sizes = self._sizes.halved(device)
        except BaseException as error:  # the thread that draws the outcomes raises it
            self._tell(error)
        else:
            self._tell(None)

    def stop(self) -> None:
        """End soon, and don't mind the jobs. Another thread calls it."""
        self._is_stopped = True
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.stop(_StoppedError())

    def _finished(self) -> bool:
        """Do all jobs; False if the device's memory ran out: then those that aren't done are in the queue again."""
        try:
            with Pipeline(
                self._setup,
                self._accelerator,
                self._host,
                frames=self._sizes.frames,
                frame_bytes=self._sizes.frame_bytes,
                on_progress=lambda read, written: self._tell((read, written)),
            ) as self._pipeline:
                if self._is_stopped:
                    raise _StoppedError
                DeviceMerger(self._setup, self._accelerator, self._pipeline, self._sizes, self._done).run(self._take)
        except (RuntimeError, RunError) as error:
            if not any(is_out_of_memory(one) for one in (error, error.__cause__) if one):  # the cause: of a plug-in's
                raise
        else:
            return True
        # Here, without the error, nothing holds on to the memory that was in use.
        self._pipeline = None
        self._accelerator.finish()
        self._queue.put_back(self._taken.values())
        self._taken.clear()
        return False

    def _take(self, most_bytes: int, most_elements: int) -> list[Job]:
        jobs = self._queue.take(most_bytes, most_elements)
        self._taken.update((id(job), job) for job in jobs)
        return jobs

    def _done(self, outcome: Outcome) -> None:
        del self._taken[id(outcome.job)]
        self._tell(replace(outcome, note=self._note))


def start_devices(names: str, *, device_memory_bytes: int | None, readers: int | None) -> Devices:
    """The GPUs that `names` lists: `cuda` is all of them, `cuda:0,cuda:2` are two. Raises RunError."""
    return Devices(open_gpus(names), device_memory_bytes=device_memory_bytes, readers=readers)
