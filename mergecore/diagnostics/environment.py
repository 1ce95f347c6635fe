"""What a machine is: versions, processors, memory. Nothing that names its owner or its folders."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_MODULES = Path("/sys/module")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    capability: str
    """`9.0`, or AMD's `gfx942`."""
    memory_bytes: int
    multiprocessors: int


@dataclass(frozen=True, slots=True)
class Environment:
    """What a report about kernels needs to say of the machine."""

    mergecore: str
    python: str
    system: str
    """`Linux x86_64`"""
    processor: str
    cores: int
    memory_bytes: int | None
    torch: str
    cuda: str | None
    """Of torch's build."""
    rocm: str | None
    triton: str | None
    """None where it is missing."""
    kvikio: str | None
    """What reads straight into the memory of NVIDIA GPUs; None where it is missing."""
    numpy: str
    driver: str | None
    gpus: tuple[Gpu, ...]


def look_around() -> Environment:
    """The environment of this process."""
    import torch

    return Environment(
        mergecore=_version("mergecore-triton") or "unknown",
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        rocm=getattr(torch.version, "hip", None),
        triton=_version("triton") if importlib.util.find_spec("triton") else None,
        kvikio=_version("kvikio-cu12") or _version("kvikio-cu13"),
        numpy=_version("numpy") or "unknown",
        driver=_driver(),
        gpus=tuple(_gpus()),
    )


def _gpus() -> Iterator[Gpu]:
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        yield Gpu(
            name=found.name,
            capability=getattr(found, "gcnArchName", f"{found.major}.{found.minor}"),
            memory_bytes=found.total_memory,
            multiprocessors=found.multi_processor_count,
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or "unknown"


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _driver() -> str | None:
    """The version of the GPU's driver."""
    for module in ("nvidia", "amdgpu"):
        file = _MODULES / module / "version"
        if file.exists():
            return f"{module} {file.read_text(encoding='ascii').strip()}"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"nvidia {answer.stdout.split()[0]}"
