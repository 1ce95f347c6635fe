"""The model of a device's memory, run in any order that its rules allow, beside a record of what lies where."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.stream.schedule import FrameState, Order, Schedule

FREE, LOADING, LOADED, COMPUTING, UNLOADING = FrameState


@dataclass
class Fence:
    passed: bool = False


@dataclass
class Device:
    """Threads, queues and memory, as a GPU has them: a copy moves what is in the memory when its turn comes."""

    schedule: Schedule[Fence]
    works: list[tuple[int, int]]
    """(parts to read, parts to write) of each frame's content, in order."""
    begun: int = 0
    content: dict[int, int] = field(default_factory=dict)
    """Which work a frame was taken for."""
    loading: deque[int] = field(default_factory=deque)
    """Frames in the order in which they are computed on."""
    reading: list[Order[Fence]] = field(default_factory=list)
    writing: list[Order[Fence]] = field(default_factory=list)
    copies_in: deque[tuple[Order[Fence], Fence]] = field(default_factory=deque)
    computations: deque[tuple[int, int, tuple[Fence, ...], Fence]] = field(default_factory=deque)
    buffers: dict[int, tuple[int, int]] = field(default_factory=dict)
    inputs: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    results: dict[int, int] = field(default_factory=dict)
    read: list[tuple[int, int]] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)

    def actions(self) -> list[Callable[[], None]]:
        """Everything that can happen next."""
        found: list[Callable[[], None]] = []
        if self.begun < len(self.works) and self.schedule.has(FREE):
            found.append(self.load)
        found += [lambda o=order: self.finish_read(o) for order in self.reading if _passed(order.buffer_after)]
        found += [lambda o=order: self.finish_write(o) for order in self.writing if _passed(order.frame_after)]
        if (order := self.schedule.next_read()) is not None:
            self.reading.append(order)
            found.append(lambda: None)
        if (order := self.schedule.next_write()) is not None:
            self.writing.append(order)
            found.append(lambda: None)
        if self.loading and self.schedule.state(self.loading[0]) is LOADED:
            found.append(self.compute)
        if self.copies_in and _passed(self.copies_in[0][0].frame_after):
            found.append(self.copy_in)
        if self.computations and all(map(_passed, self.computations[0][2])):
            found.append(self.run_computation)
        return found

    def load(self) -> None:
        frame = self.schedule.load(self.works[self.begun][0])
        self.content[frame] = self.begun
        self.loading.append(frame)
        self.begun += 1

    def finish_read(self, order: Order[Fence]) -> None:
        self.reading.remove(order)
        self.buffers[order.buffer] = self.content[order.frame], order.part
        self.read.append(self.buffers[order.buffer])
        copied = Fence()
        self.copies_in.append((order, copied))
        self.schedule.was_read(order, copied)

    def copy_in(self) -> None:
        order, copied = self.copies_in.popleft()
        self.inputs.setdefault(order.frame, {})[order.part] = self.buffers[order.buffer]
        copied.passed = True

    def compute(self) -> None:
        frame = self.loading.popleft()
        work, computed = self.content[frame], Fence()
        self.computations.append((frame, work, self.schedule.compute(frame), computed))
        if self.works[work][1]:
            self.schedule.unload(frame, self.works[work][1], computed)
        else:
            self.schedule.release(frame, computed)

    def run_computation(self) -> None:
        frame, work, _, computed = self.computations.popleft()
        found = self.inputs.pop(frame, {})
        assert found == {part: (work, part) for part in range(self.works[work][0])}
        self.results[frame] = work
        computed.passed = True

    def finish_write(self, order: Order[Fence]) -> None:
        self.writing.remove(order)
        self.written.append((self.results[order.frame], order.part))
        is_last = self.schedule.was_written(order)
        assert is_last == (self.schedule.state(order.frame) is FREE)


def run(device: Device, seed: int) -> None:
    """Until nothing more can happen."""
    choices = Random(seed)
    while actions := device.actions():
        choices.choice(actions)()


def _passed(fence: Fence | None) -> bool:
    return fence is None or fence.passed


@settings(max_examples=300)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=7),
    st.integers(0, 2**32),
)  # fmt: skip
def test_any_order_moves_each_part_once(
    frames: int, inputs: int, outputs: int, works: list[tuple[int, int]], seed: int
) -> None:
    device = Device(Schedule(frames, inputs, outputs), works)
    run(device, seed)
    # Nothing can happen any more: so all must be done, or it was a deadlock.
    assert sorted(device.read) == [(i, part) for i, (reads, _) in enumerate(works) for part in range(reads)]
    assert sorted(device.written) == [(i, part) for i, (_, writes) in enumerate(works) for part in range(writes)]
    assert all(device.schedule.state(frame) is FREE for frame in range(frames))


def test_a_buffer_that_is_handed_over_early_is_noticed() -> None:
    """The test above can fail: without the fences of the buffers, a copy finds what was read after it."""

    class Forgetful(Schedule[Fence]):
        def was_read(self, order: Order[Fence], copied: Fence) -> None:
            super().was_read(order, copied)
            self._inputs = deque((buffer, None) for buffer, _ in self._inputs)

    def run_often() -> None:
        for seed in range(50):
            run(Device(Forgetful(2, 1, 1), [(3, 1)] * 3), seed)

    with pytest.raises(AssertionError):
        run_often()


def test_the_states_of_a_frame() -> None:
    schedule: Schedule[str] = Schedule(1, 1, 1)
    frame = schedule.load(2)
    assert schedule.state(frame) is LOADING
    for part in range(2):
        order = schedule.next_read()
        assert order is not None
        assert (order.part, order.buffer_after) == (part, None if part == 0 else "copied 0")
        assert schedule.next_read() is None  # the only buffer is in use
        schedule.was_read(order, f"copied {part}")
    assert schedule.state(frame) is LOADED
    assert schedule.compute(frame) == ("copied 0", "copied 1")
    schedule.unload(frame, 1, "computed")
    assert schedule.state(frame) is UNLOADING
    order = schedule.next_write()
    assert order is not None
    assert order.frame_after == "computed"
    assert schedule.was_written(order)
    assert schedule.state(frame) is FREE


def test_what_is_loaded_next_waits_for_the_last_computation() -> None:
    schedule: Schedule[str] = Schedule(1, 1, 1)
    schedule.compute(schedule.load(0))
    schedule.release(0, "computed")
    schedule.load(1)
    order = schedule.next_read()
    assert order is not None
    assert order.frame_after == "computed"


@pytest.mark.parametrize("step", ["compute", "release", "unload", "was_written"])
def test_steps_that_are_not_in_order(step: str) -> None:
    schedule: Schedule[str] = Schedule(1, 1, 1)
    schedule.load(1)
    order = schedule.next_read()
    assert order is not None
    arguments = {"compute": (0,), "release": (0, ""), "unload": (0, 1, ""), "was_written": (order,)}
    with pytest.raises(AssertionError):
        getattr(schedule, step)(*arguments[step])
