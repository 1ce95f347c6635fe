"""Who has which memory of a device when, and what waits for what: a model without threads, devices or data.

A *frame* is device memory for one batch of tensors, or for one tile of a tensor that is larger. It is loaded in parts,
each through an input buffer in host memory, computed on, and unloaded in parts, each through an output buffer:

    FREE ── load ──▶ LOADING ── the last was_read ──▶ LOADED ── compute ──▶ COMPUTING ── unload ──▶ UNLOADING
     ▲                                                                          │                        │
     └──────────────────────────────── release ────────────────────────────────┴── the last was_written ┘

Whoever works on a device queues work and goes on. So memory may be handed over before the work on it is done, along
with a *fence* for its next user: the point in a queue that the device must have reached before the memory is touched.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

F = TypeVar("F")
"""A fence. The model only hands it on."""


class FrameState(Enum):
    FREE = "free"
    LOADING = "loading"
    LOADED = "loaded"
    COMPUTING = "computing"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class Order(Generic[F]):
    """One part of a frame, to be moved through a buffer that belongs to the order until it is reported done."""

    frame: int
    part: int
    buffer: int
    buffer_after: F | None
    """What last moved through the buffer."""
    frame_after: F | None
    """What was last computed in the frame."""


@dataclass(slots=True)
class _Frame(Generic[F]):
    state: FrameState = FrameState.FREE
    parts: int = 0
    """To be moved in this state."""
    ordered: int = 0
    moved: int = 0
    copied: list[F] = field(default_factory=list)
    """Of each part that was read."""
    computed: F | None = None


class Schedule(Generic[F]):
    """The state of one device's memory. Not for several threads at once: its user has a lock.

    A transition that isn't in the drawing above is a defect of the caller, and fails an assertion.
    """

    def __init__(self, frames: int, inputs: int, outputs: int) -> None:
        self._frames: list[_Frame[F]] = [_Frame() for _ in range(frames)]
        self._inputs: deque[tuple[int, F | None]] = deque((buffer, None) for buffer in range(inputs))
        self._outputs: deque[int] = deque(range(outputs))
        self._loading: deque[int] = deque()
        """Frames with parts that nobody reads yet, in the order in which they will be computed on."""
        self._unloading: deque[int] = deque()

    def state(self, frame: int) -> FrameState:
        return self._frames[frame].state

    def has(self, state: FrameState) -> bool:
        """Whether some frame is in this state."""
        return any(frame.state is state for frame in self._frames)

    def load(self, parts: int) -> int:
        """Take a free frame, to be filled in so many parts."""
        number = next(i for i, frame in enumerate(self._frames) if frame.state is FrameState.FREE)
        frame = self._frames[number]
        frame.state, frame.parts, frame.ordered, frame.moved = FrameState.LOADING, parts, 0, 0
        frame.copied = []
        if parts:
            self._loading.append(number)
        else:
            frame.state = FrameState.LOADED
        return number

    def next_read(self) -> Order[F] | None:
        """A part to read from disk and copy to the device, if there is one and a buffer for it."""
        if not self._loading or not self._inputs:
            return None
        buffer, buffer_after = self._inputs.popleft()
        return self._order(self._loading, buffer, buffer_after)

    def was_read(self, order: Order[F], copied: F) -> None:
        """The part is in its buffer, and the copy to the device is queued up to the fence `copied`."""
        frame = self._frames[order.frame]
        assert frame.state is FrameState.LOADING
        self._inputs.append((order.buffer, copied))
        frame.copied.append(copied)
        frame.moved += 1
        if frame.moved == frame.parts:
            frame.state = FrameState.LOADED

    def compute(self, number: int) -> tuple[F, ...]:
        """Begin to compute in a loaded frame; not before these fences."""
        frame = self._frames[number]
        assert frame.state is FrameState.LOADED
        frame.state = FrameState.COMPUTING
        return tuple(frame.copied)

    def release(self, number: int, computed: F) -> None:
        """All work on the frame is queued up to `computed`, and nothing in it has to be written."""
        frame = self._frames[number]
        assert frame.state is FrameState.COMPUTING
        frame.state, frame.computed = FrameState.FREE, computed

    def unload(self, number: int, parts: int, computed: F) -> None:
        """All work on the frame is queued up to `computed`; its results have to be written in so many parts."""
        frame = self._frames[number]
        assert frame.state is FrameState.COMPUTING
        assert parts
        frame.state, frame.parts, frame.ordered, frame.moved = FrameState.UNLOADING, parts, 0, 0
        frame.computed = computed
        self._unloading.append(number)

    def next_write(self) -> Order[F] | None:
        """A part to copy from the device and write to disk, if there is one and a buffer for it."""
        if not self._unloading or not self._outputs:
            return None
        return self._order(self._unloading, self._outputs.popleft(), None)

    def was_written(self, order: Order[F]) -> bool:
        """The part is in its file. Tells whether it was the frame's last one."""
        frame = self._frames[order.frame]
        assert frame.state is FrameState.UNLOADING
        self._outputs.append(order.buffer)
        frame.moved += 1
        if frame.moved < frame.parts:
            return False
        frame.state = FrameState.FREE
        return True

    def _order(self, queue: deque[int], buffer: int, buffer_after: F | None) -> Order[F]:
        """The next part of the first frame in `queue`, which leaves it with its last part."""
        number = queue[0]
        frame = self._frames[number]
        part = frame.ordered
        frame.ordered += 1
        if frame.ordered == frame.parts:
            queue.popleft()
        return Order(number, part, buffer, buffer_after, frame.computed)
