"""Moves tensors from files into a device's memory and from there into files, while others are computed on.

Threads read from files into buffers and queue their copies to the device; others queue copies from the device, wait for
them and write. Who has which memory, and what must have happened before, is decided by a `Schedule`. Threads are right
here, unlike on the CPU: what they call are large reads, writes and waits, which release the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Condition, Thread
from types import TracebackType
from typing import Protocol

from torch import Tensor

from mergecore.checkpoint.gathered_rows import Stored
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.plan.plan import OutputTensor
from mergecore.stream.accelerator import Accelerator, Fence
from mergecore.stream.direct_reader import DirectReader
from mergecore.stream.job import OnProgress, Setup
from mergecore.stream.layout import Layout, Piece, parts
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.schedule import FrameState, Order, Schedule
from mergecore.stream.writer import ShardFiles

WRITERS = 4
"""Threads that write, for each device."""
_BUFFERS_PER_READER = 2
"""One is filled while the other is copied to the device."""
_MOST_BUFFER_BYTES = 1 << 24
_LEAST_BUFFER_BYTES = 1 << 16
_MOST_OPEN_FILES = 768
"""In all threads together. Systems allow 1024, as a rule."""


@dataclass(frozen=True, slots=True)
class HostBuffers:
    """The threads that read and write for one device, and their buffers in host memory."""

    readers: int
    writers: int
    n_bytes: int
    """Of one buffer."""
    open_files: int
    """That a thread keeps open at most."""

    @property
    def inputs(self) -> int:
        return _BUFFERS_PER_READER * self.readers

    @classmethod
    def within(cls, memory_bytes: int, readers: int, devices: int) -> HostBuffers:
        """Those of one of several devices, whose buffers take so much memory together, or less.

        A buffer is a power of two of bytes, as pinned memory is.
        """
        share = memory_bytes // devices // (_BUFFERS_PER_READER * readers + WRITERS)
        n_bytes = 1 << max(share, 1).bit_length() - 1
        return cls(
            readers,
            WRITERS,
            min(max(n_bytes, _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES),
            max(_MOST_OPEN_FILES // devices // (readers + WRITERS), 1),
        )


def default_readers() -> int:
    """Threads that read for one device: enough to keep several disks busy."""
    return min(8, os.cpu_count() or 1)


class Reader(Protocol):
    """Reads the elements of tensors from files. Each thread has its own."""

    def read_elements(self, tensor: Stored, start: int, into: memoryview) -> None:
        """Fill `into` with a tensor's elements from `start` on. Raises CheckpointError."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Content:
    """What is in a frame."""

    reads: list[tuple[Piece, ...]]
    writes: list[tuple[Piece, ...]]
    check: Callable[[], None] = lambda: None
    written: Callable[[Piece, memoryview], None] = lambda piece, data: None
    done: Callable[[], None] = lambda: None


class Pipeline:
    """The frames of one device, and the threads that fill and empty them.

    For one thread, the one that computes. A frame that it was given by `load` is computed on after `loaded`, and handed
    back by `unload` or `release`. When a thread fails, the next call raises its error.
    """

    def __init__(
        self,
        setup: Setup,
        accelerator: Accelerator,
        host: HostBuffers,
        *,
        frames: int,
        frame_bytes: int,
        on_progress: OnProgress,
        open_reader: Callable[[int], Reader] = Files,
    ) -> None:
        """open_reader: is told how many files it may keep open.

        Raises torch.cuda.OutOfMemoryError if the frames don't fit into the device's memory.
        """
        self._setup, self._accelerator, self._host = setup, accelerator, host
        self._on_progress = on_progress
        self._open_reader = open_reader
        self._frames = [accelerator.device_memory(frame_bytes) for _ in range(frames)]
        self._inputs = [accelerator.host_memory(host.n_bytes) for _ in range(host.inputs)]
        self._outputs = [accelerator.host_memory(host.n_bytes) for _ in range(host.writers)]
        self._contents: dict[int, _Content] = {}
        self._schedule: Schedule[Fence] = Schedule(frames, host.inputs, host.writers)
        self._changed = Condition()
        """The lock of the schedule, which tells when it has changed."""
        self._closing = False
        self._error: BaseException | None = None
        self._threads = [Thread(target=self._guarded, args=(self._read,)) for _ in range(host.readers)]
        self._threads += [Thread(target=self._guarded, args=(self._write,)) for _ in range(host.writers)]

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """End the threads, when they have done what they are at, and give all memory back."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._frames.clear()
        self._accelerator.finish()
        if kind is None and self._error is not None:
            raise self._error

    def stop(self, error: BaseException | None = None) -> None:
        """Let all threads end, the one that computes with this error. Any thread may call it."""
        with self._changed:
            self._closing = True
            self._error = self._error or error
            self._changed.notify_all()

    def memory(self, frame: int) -> Tensor:
        """[frame_bytes] uint8 on the device."""
        return self._frames[frame]

    def has_free_frame(self) -> bool:
        """Whether `load` would not have to wait."""
        with self._changed:
            return self._schedule.has(FrameState.FREE)

    def load(self, layout: Layout) -> int:
        """Begin to fill a frame, which this gives; wait for one that is free."""
        size = self._host.n_bytes
        content = _Content(parts(layout.reads, size), parts(layout.writes, size))
        with self._changed:
            self._wait(self._can_load)
            frame = self._schedule.load(len(content.reads))
            self._contents[frame] = content
            self._changed.notify_all()
        return frame

    def loaded(self, frame: int) -> None:
        """Wait until all of the frame is read; what is computed from now on waits for its copies, on the device."""
        with self._changed:
            self._wait(lambda: self._schedule.state(frame) is FrameState.LOADED)
            fences = self._schedule.compute(frame)
        self._accelerator.compute_after(fences)

    def unload(
        self,
        frame: int,
        check: Callable[[], None],
        written: Callable[[Piece, memoryview], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """All that will be computed in the frame is queued: write its results.

        Other threads call `check` before they write, perhaps more than once; `written` after each piece, with its
        bytes, which hold until it returns, perhaps at the same time for several; and `done` once, after all that.
        """
        computed = self._accelerator.computed()
        content = self._contents[frame]
        content.check, content.written, content.done = check, written, done
        with self._changed:
            self._schedule.unload(frame, len(content.writes), computed)
            self._changed.notify_all()

    def release(self, frame: int) -> None:
        """All that will be computed in the frame is queued, and nothing in it has to be written."""
        computed = self._accelerator.computed()
        with self._changed:
            self._schedule.release(frame, computed)
            self._changed.notify_all()

    def abandon(self, frame: int) -> None:
        """Release a frame, whether or not it is loaded, where nothing can be raised: the next call raises the error."""
        try:
            if self._schedule.state(frame) is not FrameState.COMPUTING:
                self.loaded(frame)
            self.release(frame)
        except BaseException as error:
            self.stop(error)

    def drain(self) -> None:
        """Wait until all that was unloaded is written."""
        with self._changed:
            self._wait(lambda: not self._schedule.has(FrameState.UNLOADING))

    def _can_load(self) -> bool:
        if self._schedule.has(FrameState.FREE):
            return True
        assert self._schedule.has(FrameState.UNLOADING), "no frame will become free"
        return False

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait, with the lock, until it is so, or raise what went wrong."""
        self._changed.wait_for(lambda: self._closing or ready())
        if self._error is not None:
            raise self._error
        assert not self._closing

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # the thread that computes raises it
            self.stop(error)

    def _next(self, take: Callable[[], Order[Fence] | None]) -> Order[Fence] | None:
        """The next order for this thread; None when there will be no more."""
        with self._changed:
            while not self._closing:
                order = take()
                if order is not None:
                    return order
                self._changed.wait()
        return None

    def _read(self) -> None:
        with ExitStack() as stack:
            reader = stack.enter_context(closing(self._open_reader(self._host.open_files)))
            direct = self._accelerator.direct_reader(self._host.open_files)
            if direct is not None:
                stack.callback(direct.close)
            while (order := self._next(self._schedule.next_read)) is not None:
                part = self._contents[order.frame].reads[order.part]
                buffer, memory = self._shared(self._inputs[order.buffer], order.frame, part)
                if direct is not None and all(_lies_in_one_run(piece) for piece in part):
                    copied = self._read_directly(direct, order, part, memory)
                else:
                    copied = self._read_by_host(reader, order, part, buffer, memory)
                with self._changed:
                    self._schedule.was_read(order, copied)
                    self._changed.notify_all()

    def _read_by_host(
        self, reader: Reader, order: Order[Fence], part: Sequence[Piece], buffer: Tensor, memory: Tensor
    ) -> Fence:
        if order.buffer_after is not None:
            order.buffer_after.synchronize()
        self._fill(reader, part, raw_bytes(buffer))
        return self._accelerator.copy_in(memory, buffer, order.frame_after)

    def _read_directly(self, direct: DirectReader, order: Order[Fence], part: Sequence[Piece], memory: Tensor) -> Fence:
        if order.frame_after is not None:
            order.frame_after.synchronize()
        for piece in part:
            assert isinstance(piece.tensor, TensorRef)
            at = piece.at - part[0].at
            place = piece.tensor.offset_bytes + piece.offset_bytes
            direct.read(piece.tensor.file, place, memory[at : at + piece.n_bytes])
            self._on_progress(piece.n_bytes, 0)
        nothing = self._inputs[order.buffer][:0]
        return self._accelerator.copy_in(memory[:0], nothing, order.buffer_after)  # all is there: a fence that says so

    def _fill(self, reader: Reader, part: Sequence[Piece], into: memoryview) -> None:
        for piece in part:
            assert not isinstance(piece.tensor, OutputTensor)
            at = piece.at - part[0].at
            start = piece.offset_bytes // piece.tensor.dtype.size
            reader.read_elements(piece.tensor, start, into[at : at + piece.n_bytes])
            self._on_progress(piece.n_bytes, 0)

    def _write(self) -> None:
        output = ShardFiles(self._setup.folder, self._setup.shards, self._host.open_files)
        try:
            while (order := self._next(self._schedule.next_write)) is not None:
                content = self._contents[order.frame]
                part = content.writes[order.part]
                buffer, memory = self._shared(self._outputs[order.buffer], order.frame, part)
                self._accelerator.copy_out(buffer, memory, order.frame_after).synchronize()
                content.check()
                self._empty(output, part, raw_bytes(buffer), content.written)
                with self._changed:
                    is_done = self._schedule.was_written(order)
                    self._changed.notify_all()
                if is_done:
                    content.done()
        finally:
            output.close()

    def _empty(
        self,
        output: ShardFiles,
        part: Sequence[Piece],
        data: memoryview,
        written: Callable[[Piece, memoryview], None],
    ) -> None:
        for piece in part:
            assert isinstance(piece.tensor, OutputTensor)
            at = piece.at - part[0].at
            place = piece.tensor.offset_bytes + piece.offset_bytes
            of_piece = data[at : at + piece.n_bytes]
            output.write(piece.tensor.shard, place, of_piece)
            written(piece, of_piece)
            self._on_progress(0, piece.n_bytes)

    def _shared(self, buffer: Tensor, frame: int, part: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """The same bytes in the buffer and in the frame, of all pieces of a part."""
        begin, end = part[0].at, part[-1].end
        return buffer[: end - begin], self._frames[frame][begin:end]


def _lies_in_one_run(piece: Piece) -> bool:
    """Whether the bytes of a piece follow one another in one file."""
    return isinstance(piece.tensor, TensorRef) and piece.tensor.strides is None
