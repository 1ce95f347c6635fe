"""A device that isn't there: plain memory, and copies that are done late, by other threads, to shake the order.

What is computed is computed at once. What was queued for copying is not there until its fence is, and memory that is
used again too early makes wrong bytes, so that merges on this device show a wait that is missing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread

import torch
from torch import Tensor

from mergecore.stream.accelerator import Fence
from mergecore.stream.direct_reader import DirectReader


class Done:
    """A fence that has been passed."""

    def synchronize(self) -> None:
        pass


class Passed:
    """A fence that a copying thread passes."""

    def __init__(self) -> None:
        self._event = Event()
        self._error: Exception | None = None

    def set(self, error: Exception | None = None) -> None:
        self._error = error
        self._event.set()

    def synchronize(self) -> None:
        if not self._event.wait(timeout=20):
            raise TimeoutError("the device hangs")
        if self._error is not None:
            raise self._error


class StandIn:
    """An Accelerator of plain memory."""

    device = torch.device("cpu")

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        free_bytes: int = 1 << 32,
        on_allocate: Callable[[int], None] = lambda n: None,
        on_call: Callable[[str], None] = lambda name: None,
    ) -> None:
        """delay_s: the longest time before a copy is done. on_allocate: is told of memory taken on the device, and
        on_call of every other call, both before anything is done.
        """
        self.free = free_bytes
        self.direct: DirectReader | None = None
        """What reads into its memory."""
        self._on_allocate, self._on_call = on_allocate, on_call
        self._delays = random.Random(3)
        self._delay_s = delay_s
        self._copies: list[SimpleQueue[Callable[[], None] | None]] = [SimpleQueue(), SimpleQueue()]
        self._threads = [Thread(target=self._serve, args=(queue,), daemon=True) for queue in self._copies]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End its threads."""
        for queue in self._copies:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    def free_bytes(self) -> int:
        self._on_call("free_bytes")
        return self.free

    def host_memory(self, n_bytes: int) -> Tensor:
        self._on_call("host_memory")
        return torch.full((n_bytes,), 0xFF, dtype=torch.uint8)

    def device_memory(self, n_bytes: int) -> Tensor:
        self._on_allocate(n_bytes)
        return torch.full((n_bytes,), 0xFF, dtype=torch.uint8)

    def copy_in(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        self._on_call("copy_in")
        return self._copy(0, into, source, after)

    def copy_out(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        self._on_call("copy_out")
        return self._copy(1, into, source, after)

    def direct_reader(self, most_open: int) -> DirectReader | None:
        return self.direct

    @contextmanager
    def computing(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def compute_after(self, fences: Iterable[Fence]) -> None:
        for fence in fences:
            fence.synchronize()

    def computed(self) -> Fence:
        self._on_call("computed")
        return Done()

    def finish(self) -> None:
        self._on_call("finish")
        for queue in range(2):
            self._copy(queue, torch.empty(0), torch.empty(0), None).synchronize()

    def _copy(self, queue: int, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        passed = Passed()

        def copy() -> None:
            try:
                if after is not None:
                    after.synchronize()
                if self._delay_s:
                    time.sleep(self._delays.uniform(0, self._delay_s))
                into.copy_(source)
            except Exception as error:  # whoever waits for the copy raises it
                passed.set(error)
            else:
                passed.set()

        self._copies[queue].put(copy)
        return passed

    def _serve(self, queue: SimpleQueue[Callable[[], None] | None]) -> None:
        while (copy := queue.get()) is not None:
            copy()
