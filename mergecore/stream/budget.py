"""How much memory a merge needs, and how much of a tensor is held at a time."""

from __future__ import annotations

from mergecore import methods
from mergecore.checkpoint.gathered_rows import GatheredRows
from mergecore.errors import PlanError
from mergecore.plan.plan import OutputTensor, Plan
from mergecore_kernels.operations import CHUNK

TILE_CHUNKS = 4
"""Chunks in a tile: small enough for the caches, large enough that the calls cost little beside the work."""
_SCRATCH_TENSORS = 8
"""Tile-sized buffers that the operations need beside one per input."""
_ROW_SCRATCH_TENSORS = 24
"""The same where they look at whole rows: ranks and the divergence of distributions need 64 bits."""


def tile_elements(tensor: OutputTensor, budget_bytes: int) -> int:
    """Elements of `tensor` to hold at a time, so that the buffers take no more than half of the budget."""
    for chunks in range(TILE_CHUNKS, 1, -1):
        if tiles_bytes(tensor, chunks * CHUNK) <= budget_bytes // 2:
            return chunks * CHUNK
    return CHUNK


def needed_row(tensor: OutputTensor) -> int:
    """Elements of a row where the method needs whole ones in memory, else 1."""
    return tensor.columns if tensor.method is not None and methods.get(tensor.method).whole_rows else 1


def tiles_bytes(tensor: OutputTensor, elements: int) -> int:
    """Memory for tiles of so many elements: each source as stored and as computed with, the output, and scratch.

    Where the method needs whole rows, a tile is one row at least. The factors of adapters are held whole.
    """
    computed = 8 if tensor.double else 4
    stored = sum(read.dtype.size for read in tensor.stored) + tensor.dtype.size
    factors = computed * sum(factor.n for factor in tensor.factors)
    gathered = [source.dtype.size for source in tensor.stored if isinstance(source, GatheredRows)]
    stored += 3 * max(gathered, default=0)  # their rows as stored, converted, and in their places
    return (
        held_elements(tensor, elements) * (stored + computed * len(tensor.sources) + scratch_per_element(tensor))
        + factors
    )


def held_elements(tensor: OutputTensor, elements: int) -> int:
    """Elements of a tile that shall have so many: those of a row at least, where rows are needed, and of the tensor
    at most.
    """
    return min(max(elements, needed_row(tensor)), max(tensor.n, 1))


def scratch_per_element(tensor: OutputTensor) -> int:
    """Bytes that the operations need for each element of a tile, beside the tile."""
    computed = 8 if tensor.double else 4
    return computed * (_ROW_SCRATCH_TENSORS if needed_row(tensor) > 1 else _SCRATCH_TENSORS)


def least_memory(plan: Plan, workers: int) -> int:
    """The smallest `--memory` this plan can run with, in bytes."""
    return 2 * workers * max((tiles_bytes(tensor, CHUNK) for tensor in plan.tensors), default=0)


def check_memory(plan: Plan, workers: int, memory_bytes: int) -> None:
    """Raises PlanError if the plan can't run within `memory_bytes`."""
    least = least_memory(plan, max(workers, 1))
    if memory_bytes < least:
        raise PlanError.at(
            "--memory",
            f"{memory_bytes / 1e6:.3g} MB is too little for {max(workers, 1)} workers: "
            f"at least {least / 1e6:.3g} MB are needed",
            "give more memory or use fewer --workers",
        )
