"""How the memory of a device is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mergecore.errors import PlanError, RunError
from mergecore.plan.plan import OutputTensor
from mergecore.stream.budget import held_elements, scratch_per_element
from mergecore.stream.job import Job
from mergecore.stream.layout import ALIGNMENT, aligned, span_bytes
from mergecore_kernels.operations import CHUNK

FRAMES = 3
"""One is loaded, one computed on, one unloaded."""
_SHARES = FRAMES + 2
"""Parts of the device's memory: one for each frame, one for scratch memory that grows with the tiles, one for
operations that can use as much as they are given."""
_BATCH_BYTES = 1 << 28
"""Frames are larger only for tensors that are."""
_MOST_STEP = 1 << 24


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """Sizes for one run on one device."""

    frame_bytes: int
    step: int
    """Elements that are computed on at a time; a multiple of CHUNK. Also the most in a batch of several tensors."""
    scratch_bytes: int
    """What an operation may use beside its tile-sized buffers."""
    least_frame_bytes: int = 0
    """Room for the smallest tile of each tensor."""
    frames: int = FRAMES

    @classmethod
    def within(cls, device_memory_bytes: int, jobs: Sequence[Job]) -> DeviceSizes:
        """For these jobs. Raises PlanError if so much memory is too little."""
        tensors = [job.tensor for job in jobs]
        check_device_memory(device_memory_bytes, tensors)
        share = device_memory_bytes // _SHARES
        needed = [span_bytes(job.tensor, job.stop - job.start) for job in jobs]
        wanted = max([*needed, min(sum(needed), _BATCH_BYTES), ALIGNMENT])
        scratch = max((scratch_per_element(tensor) for tensor in tensors), default=1)
        return cls(
            frame_bytes=min(share, wanted) // ALIGNMENT * ALIGNMENT,
            step=min(max(share // scratch // CHUNK, 1) * CHUNK, _MOST_STEP),
            scratch_bytes=share,
            least_frame_bytes=least_frame(tensors),
        )

    def halved(self, device: object) -> DeviceSizes:
        """What to try when the device's memory ran out. Raises RunError where it can't be less."""
        if self.step <= CHUNK:
            raise RunError.at(
                "--device",
                f"{device} ran out of memory, even with the smallest tiles",
                "end other programs that use the device, or merge on the CPU",
            )
        return replace(
            self,
            frame_bytes=max(aligned(self.frame_bytes // 2), self.least_frame_bytes),
            step=self.step // 2 // CHUNK * CHUNK,
            scratch_bytes=self.scratch_bytes // 2,
        )


def check_device_memory(device_memory_bytes: int, tensors: Sequence[OutputTensor]) -> None:
    """Raises PlanError if these tensors can't be merged within so much memory on the device."""
    least = least_device_memory(tensors)
    if device_memory_bytes < least:
        raise PlanError.at(
            "--device-memory",
            f"{device_memory_bytes / 1e6:.3g} MB is too little: at least {least / 1e6:.3g} MB are needed",
            "give more memory, or leave --device-memory out to use what is free",
        )


def least_device_memory(tensors: Sequence[OutputTensor]) -> int:
    """Bytes of a device's memory with which these tensors can be merged."""
    scratch = max((held_elements(tensor, CHUNK) * scratch_per_element(tensor) for tensor in tensors), default=0)
    return _SHARES * aligned(max(scratch, least_frame(tensors)))


def least_frame(tensors: Sequence[OutputTensor]) -> int:
    """Bytes of a frame that has room for the smallest tile of each tensor, and for the factors of its adapters."""
    return max((_smallest_tile(tensor) for tensor in tensors), default=0)


def _smallest_tile(tensor: OutputTensor) -> int:
    factors = sum(aligned(factor.n_bytes) for factor in tensor.factors)
    return max(span_bytes(tensor, held_elements(tensor, CHUNK), with_factors=False), factors)
