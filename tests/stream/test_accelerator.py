"""What is asked of torch.cuda, and in which order: recorded, as there need not be a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from mergecore import RunError
from mergecore.stream import accelerator
from mergecore.stream.accelerator import Gpu, open_gpus

DEVICE = torch.device("cuda:0")


class Event:
    def __init__(self, **options: Any) -> None:
        assert options == {"blocking": True}


class Stream:
    made: list[Stream]

    def __init__(self, device: torch.device) -> None:
        assert device == DEVICE
        self.log: list[tuple[str, object]] = []
        self.made.append(self)

    def wait_event(self, event: object) -> None:
        self.log.append(("wait", event))

    def record_event(self, event: object) -> None:
        self.log.append(("record", event))


class Copied:
    """A tensor that tells the current stream of copies into it."""

    def copy_(self, source: object, *, non_blocking: bool) -> None:
        assert non_blocking
        Current.stream.log.append(("copy", source))


class Current:
    stream: Stream

    @classmethod
    def use(cls, stream: Stream) -> AbstractContextManager[None]:
        cls.stream = stream
        return nullcontext()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Those of the next Gpu: copies in, computation, copies out."""
    Stream.made = []
    for name, fake in {"Stream": Stream, "Event": Event, "stream": Current.use}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return Stream.made


@pytest.mark.parametrize(("name", "stream"), [("copy_in", 0), ("copy_out", 2)])
def test_a_copy_waits_before_and_is_recorded_after(name: str, stream: int, streams: list[Stream]) -> None:
    copy: Any = getattr(Gpu(DEVICE), name)
    first = copy(Copied(), "a", None)
    second = copy(Copied(), "b", first)
    log = [("copy", "a"), ("record", first), ("wait", first), ("copy", "b"), ("record", second)]
    assert [found.log for found in streams] == [log if i == stream else [] for i in range(3)]


def test_computation_waits_for_all_copies(streams: list[Stream]) -> None:
    gpu = Gpu(DEVICE)
    copies: Any = ["a", "b"]
    with gpu.computing():
        assert Current.stream is streams[1]
        gpu.compute_after(copies)
        computed = gpu.computed()
    assert streams[1].log == [("wait", "a"), ("wait", "b"), ("record", computed)]


def test_a_device_that_is_named_twice(streams: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_devices", lambda name: [torch.device(name)])
    assert [gpu.device for gpu in open_gpus("cuda:0")] == [DEVICE]
    with pytest.raises(RunError, match="--device: `cuda:0, cuda:0` names cuda:0 twice .hint: name each device once"):
        open_gpus("cuda:0, cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so memory can be pinned")
def test_host_memory_that_can_t_be_had(streams: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with pytest.raises(
        RunError, match="--memory: 16 MB for copies from and to cuda:0 can't be had: .* .hint: give a s"
    ):
        Gpu(DEVICE).host_memory(16_000_000)
