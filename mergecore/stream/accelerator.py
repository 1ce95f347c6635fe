"""What a merge asks of a GPU: memory on both sides, copies and computation that overlap, and fences between them.

Everything that is particular to CUDA, ROCm (which torch calls cuda, too) and XPU is in this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from mergecore.errors import RunError
from mergecore.stream.direct_reader import DirectReader, open_direct_reader

TYPES = ("cuda", "xpu")
"""Of devices that have the streams and events that are needed here."""


_DRIVER_ERROR = re.compile(r"(CUDA|HIP|XPU) error|Triton Error|Native API failed|level_zero backend failed")
"""How the messages begin of what torch and triton raise when a driver's call fails."""
_TRITON_ERROR = re.compile(r"Failed to find C compiler|0 active drivers")
"""And of what triton raises where it can't compile."""


class Fence(Protocol):
    """A point in a device's queue of work."""

    def synchronize(self) -> None:
        """Make the calling thread wait until the device has reached it."""


class Accelerator(Protocol):
    """A device with three queues: copies in, computation, copies out. Calls queue work and return at once.

    Work in one queue is done in order; between queues there is only the order that fences give.
    """

    @property
    def device(self) -> torch.device: ...

    def free_bytes(self) -> int:
        """Device memory that nobody uses."""

    def host_memory(self, n_bytes: int) -> Tensor:
        """[n_bytes] uint8 in host memory that the device can copy from and to by itself. Raises RunError."""

    def device_memory(self, n_bytes: int) -> Tensor:
        """[n_bytes] uint8 on the device. Raises torch.cuda.OutOfMemoryError."""

    def copy_in(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        """Copy from host memory to the device, when it has passed `after`. Gives the end of the copy."""

    def copy_out(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        """The same from the device to host memory."""

    def direct_reader(self, most_open: int) -> DirectReader | None:
        """For one thread, which keeps so many files open: what reads into device memory, if something does."""

    def computing(self) -> Any:
        """A context in which the calling thread's torch calls and kernels are queued as this device's computation."""

    def compute_after(self, fences: Iterable[Fence]) -> None:
        """What is computed from now on waits, on the device, for the fences."""

    def computed(self) -> Fence:
        """The end of the computation queued so far."""

    def finish(self) -> None:
        """Wait until all queues are empty, and give the memory that torch caches back to the device."""


class Gpu:
    """An Accelerator that is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._api: Any = getattr(torch, device.type)  # torch.cuda or torch.xpu, which are alike
        self._in, self._compute, self._out = (self._api.Stream(device) for _ in range(3))
        # A thread that waits for a CUDA event spins unless the event is blocking. XPU has no such choice.
        self._event_options = {"blocking": True} if device.type == "cuda" else {}

    def free_bytes(self) -> int:
        free: int = self._api.mem_get_info(self.device)[0]
        return free

    def host_memory(self, n_bytes: int) -> Tensor:
        try:
            with self._api.device(self.device):
                return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            what = f"{n_bytes / 1e6:.3g} MB for copies from and to {self.device} can't be had: {_first_line(error)}"
            hint = "give a smaller --memory, or end other programs"
            raise RunError.at("--memory", what, hint) from None  # no cause: smaller tiles on the device don't help

    def device_memory(self, n_bytes: int) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=self.device)

    def copy_in(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        return self._copy(self._in, into, source, after)

    def copy_out(self, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        return self._copy(self._out, into, source, after)

    def direct_reader(self, most_open: int) -> DirectReader | None:
        return open_direct_reader(self.device, most_open)

    @contextmanager
    def computing(self) -> Iterator[None]:
        with self._api.device(self.device), self._api.stream(self._compute):
            yield

    def compute_after(self, fences: Iterable[Fence]) -> None:
        for fence in fences:
            self._compute.wait_event(fence)

    def computed(self) -> Fence:
        return self._record(self._compute)

    def finish(self) -> None:
        self._api.synchronize(self.device)
        self._api.empty_cache()

    def _copy(self, stream: Any, into: Tensor, source: Tensor, after: Fence | None) -> Fence:
        with self._api.device(self.device), self._api.stream(stream):
            if after is not None:
                stream.wait_event(after)
            into.copy_(source, non_blocking=True)
            return self._record(stream)

    def _record(self, stream: Any) -> Fence:
        fence: Fence = self._api.Event(**self._event_options)
        stream.record_event(fence)
        return fence


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory ran out: torch's own error, or what the driver says where others take memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error)
    )


@contextmanager
def telling_failures(device: torch.device) -> Iterator[None]:
    """Raises a RunError that names the device for what its driver raises, and for a triton that can't be used."""
    try:
        yield
    except RuntimeError as error:
        if _DRIVER_ERROR.match(str(error)):
            hint = "what is done stays: give the same command again, or merge on the CPU"
            raise RunError.at("--device", f"{device} failed: {_first_line(error)}", hint) from error
        if _TRITON_ERROR.match(str(error)):
            what = f"triton can't be used on {device}: {_first_line(error)}"
            raise RunError.at("--backend", what, "--backend torch merges without it") from error
        raise


def open_gpus(names: str) -> list[Gpu]:
    """The GPUs that `names` lists: `cuda` is every one that torch sees, `cuda:0,cuda:2` are two. Raises RunError."""
    devices = [device for name in names.split(",") for device in _devices(name.strip())]
    for i, device in enumerate(devices):
        if device in devices[:i]:
            raise RunError.at("--device", f"`{names}` names {device} twice", "name each device once")
    return [Gpu(device) for device in devices]


def _devices(name: str) -> list[torch.device]:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError.at(
            "--device", f"`{name}` can't be used: {_first_line(error)}", "leave it out to merge on the CPU"
        ) from error
    if device.type not in TYPES:
        raise RunError.at(
            "--device",
            f"`{name}` can't be used: merges run on the CPU, or on GPUs of the types {' and '.join(TYPES)}",
            "leave it out to merge on the CPU",
        )
    if device.index is not None:
        return [device]
    return [torch.device(device.type, i) for i in range(getattr(torch, device.type).device_count())]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
