"""The device and the operations that a measurement runs on."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from mergecore_kernels.cases import Ops


def load_ops(backend: str) -> Ops:
    """The operations of `torch` or `triton`."""
    return cast("Ops", importlib.import_module(f"mergecore_kernels.{backend}_ops"))


def load_kernels() -> Ops | None:
    """The operations of triton; None where it isn't installed."""
    return load_ops("triton") if importlib.util.find_spec("triton") else None


@contextmanager
def used_alone(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one; on the CPU, use one thread, as a worker of a merge does."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
