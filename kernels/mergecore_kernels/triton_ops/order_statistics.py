"""The k-th largest magnitude of each delta, exact. A pass reads the base once, and the deltas that still need it.

What is found stays on the device (`radix`): no pass waits for the host, and one that no search needs returns at once.
Of the passes launched, deltas of 16-bit inputs need four as a rule (two by rank, one by hash among the equals, one that
gathers), those of float32 three, and tensors of up to 2048 elements one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import triton
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited
from mergecore_kernels.triton_ops.claims import Examples
from mergecore_kernels.triton_ops.radix import HASH, INFINITY, PASSES, RANK, STATE, Radix, radix_of
from mergecore_kernels.triton_ops.radix_run import BLOCK, Job, RadixRun


def kth_magnitudes(tiles: Tiles, spec: KthMagnitudes, workspace: Workspace) -> tuple[Trim | None, ...]:
    """[as many as `spec.kept`] trims that keep exactly k elements each: those of the torch twin, bit for bit."""
    trims: tuple[Trim | None, ...]
    ((trims,),) = awaited([kth_magnitudes_batch([(spec, tiles)], workspace)])
    return trims


def kth_magnitudes_batch(
    jobs: Sequence[Job], workspace: Workspace, radix: Radix | None = None, block: int = BLOCK
) -> Pending:
    """The trims of each job.

    If all tiles are lists, all passes are launched without a wait. Other tiles are drawn anew for each pass, perhaps
    from a disk: for their sake the host waits between passes, and makes only those that are needed.

    `radix` is by default that of the current device, `block` a power of two up to CHUNK; no result depends on them.
    """
    radix = radix or _radix()
    states: list[Tensor] = [torch.empty(0, STATE, dtype=torch.int64, device=workspace.device)]
    lengths: list[int] = []
    for part in _parts(jobs, radix, workspace.budget_bytes):
        run = RadixRun(part, radix, block, workspace)
        run.search()
        states.append(run.state)
        lengths += run.lengths
    searches = [
        (k, n, key)
        for (spec, _), n in zip(jobs, lengths, strict=True)
        for k, key in zip(spec.kept, spec.keys, strict=True)
    ]

    def finish(fields: list[int]) -> list[tuple[Trim | None, ...]]:
        trims = iter([_trim(fields[i * STATE : (i + 1) * STATE], *search) for i, search in enumerate(searches)])
        return [tuple(islice(trims, len(spec.kept))) for spec, _ in jobs]

    return Pending(torch.cat(states).flatten(), finish)


def passes_made(tiles: Tiles, spec: KthMagnitudes, workspace: Workspace) -> tuple[int, ...]:
    """[M] the passes of this search that read the delta, as bits: for `bytes_moved`."""
    fields = kth_magnitudes_batch([(spec, tiles)], workspace).values.tolist()
    return tuple(fields[PASSES::STATE])


def bytes_moved(tile: Tile, passes: Sequence[int]) -> int:
    """Bytes read for a tile whose deltas were read in these passes ([M] bits); histograms are below a per cent."""
    assert tile.base is not None, "magnitudes of deltas need a base"
    of_any = 0
    total = 0
    for x, mine in zip(tile.inputs, passes, strict=True):
        of_any |= mine
        total += mine.bit_count() * x.numel() * x.element_size()
    return total + of_any.bit_count() * tile.base.numel() * tile.base.element_size()


def _radix() -> Radix:
    if triton.knobs.runtime.interpret:
        return radix_of("cuda")
    return radix_of(triton.runtime.driver.active.get_current_target().backend)


def _parts(jobs: Sequence[Job], radix: Radix, budget_bytes: int) -> Iterator[list[Job]]:
    """The jobs, in parts whose counts and gathered elements fit the budget. The parts share that memory."""
    searches = max(budget_bytes // (8 * (radix.buckets + radix.few)), 1)
    part: list[Job] = []
    held = 0
    for job in jobs:
        if part and held + len(job[0].kept) > searches:
            yield part
            part, held = [], 0
        part.append(job)
        held += len(job[0].kept)
    if part:
        yield part


def _trim(fields: Sequence[int], k: int, n: int, key: Key) -> Trim | None:
    """What a search's state [STATE] says."""
    if k == 0:
        return Trim(float("inf"), 0, key)
    if k == n:
        return None
    bits = INFINITY - fields[RANK]
    if bits == INFINITY:
        return Trim(float(np.finfo(np.float32).max), HASH_RANGE - 1, key)
    if bits == 0:
        return Trim(0.0, HASH_RANGE - 1, key)
    return Trim(float(np.int32(bits).view(np.float32)), fields[HASH], key)


def examples(m: int, dtype: torch.dtype) -> Examples:
    """All passes; a length that is no multiple of anything."""
    n = 3 * BLOCK + 5
    base, inputs = torch.zeros(n, dtype=dtype), [torch.zeros(n, dtype=dtype) for _ in range(m)]
    spec = KthMagnitudes((n // 2,) * m, (Key("example"),) * m)
    tile = Tile(0, inputs, base, torch.float32)
    shown: Examples = {"deltas": lambda workspace: kth_magnitudes_batch([(spec, [tile])], workspace)}
    if m == 2:
        mixed = Tile(0, [inputs[0], inputs[1].to(torch.float32)], base, torch.float32)
        shown["mixed dtypes"] = lambda workspace: kth_magnitudes_batch([(spec, [mixed])], workspace)
    return shown
