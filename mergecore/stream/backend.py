"""Which implementation of the operations a merge runs on, and why. Decided once per merge, without loading torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

from mergecore.errors import ConfigError

NAMES = ("auto", "torch", "triton")


@dataclass(frozen=True, slots=True)
class Backend:
    """The operations' implementation, and the device it runs on."""

    name: str
    """`torch` or `triton`."""
    device: str
    """As torch names it."""
    why: str
    """For the log and the report."""

    def __str__(self) -> str:
        return f"{self.name} on {self.device}"


def choose_backend(name: str, device: str) -> Backend:
    """The backend for `device`. `auto` takes triton on a GPU if it is installed, else torch.

    An explicit choice never falls back: raises ConfigError if it can't run.
    """
    if name not in NAMES:
        raise ConfigError.at("--backend", f"`{name}` is not a backend", f"the backends are {', '.join(NAMES)}")
    if name == "torch":
        return Backend("torch", device, "it was asked for")
    if name == "triton":
        _require_triton(device)
        return Backend("triton", device, "it was asked for")
    if is_cpu(device):
        return Backend("torch", device, "triton needs a GPU")
    if device.startswith("xpu"):
        return Backend("torch", device, "the kernels are for CUDA and ROCm")
    if not _has_triton():
        return Backend("torch", device, "triton is not installed")
    return Backend("triton", device, "the device is a GPU")


def is_cpu(device: str) -> bool:
    """Whether a device, or a list of devices, named as in torch, is the CPU."""
    return device.partition(":")[0] == "cpu"


def _require_triton(device: str) -> None:
    if not _has_triton():
        raise ConfigError.at("--backend", "triton is not installed", "pip install triton, or leave --backend out")
    if is_cpu(device) and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError.at(
            "--backend", f"triton needs a GPU, and the device is {device}", "add --device cuda, or leave --backend out"
        )


def _has_triton() -> bool:
    return find_spec("triton") is not None
