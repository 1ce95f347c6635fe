"""How much memory a merge needs, and how much of a tensor is held at a time."""

from __future__ import annotations

from mergecore.errors import PlanError
from mergecore.plan.plan import OutputTensor, Plan
from mergecore_kernels.operations import CHUNK

TILE_CHUNKS = 4
"""Chunks in a tile: small enough for the caches, large enough that the calls cost little beside the work."""
_SCRATCH_TENSORS = 8
"""Tile-sized buffers that the operations need beside one per input."""


def tile_elements(tensor: OutputTensor, budget_bytes: int) -> int:
    """Elements of `tensor` to hold at a time, so that the buffers take no more than half of the budget."""
    for chunks in range(TILE_CHUNKS, 1, -1):
        if tiles_bytes(tensor, chunks * CHUNK) <= budget_bytes // 2:
            return chunks * CHUNK
    return CHUNK


def tiles_bytes(tensor: OutputTensor, elements: int) -> int:
    """Memory for tiles of so many elements: each source as stored and as computed with, the output, and scratch."""
    computed = 8 if tensor.double else 4
    stored = sum(source.tensor.dtype.size for source in tensor.sources) + tensor.dtype.size
    return min(elements, max(tensor.n, 1)) * (stored + computed * (len(tensor.sources) + _SCRATCH_TENSORS))


def least_memory(plan: Plan, workers: int) -> int:
    """The smallest `--memory` this plan can run with, in bytes."""
    return 2 * workers * max((tiles_bytes(tensor, CHUNK) for tensor in plan.tensors), default=0)


def check_memory(plan: Plan, workers: int, memory_bytes: int) -> None:
    """Raises PlanError if the plan can't run within `memory_bytes`."""
    least = least_memory(plan, max(workers, 1))
    if memory_bytes < least:
        raise PlanError.at(
            "--memory",
            f"{memory_bytes / 1e6:.3g} MB is too little for {workers} workers: "
            f"at least {least / 1e6:.3g} MB are needed",
            "give more memory or use fewer --workers",
        )
