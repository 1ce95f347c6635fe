"""Drop elements at random, those of small magnitude within their row more often: DELLA's mask.

The probability of being kept rises with the rank of |δ| in the row. Equal magnitudes share the mean of their ranks, so
they have equal probabilities, no order of the elements plays a part, and the mean over the row is `density` exactly.

A row is sorted by keys of 64 bits, magnitude above place: several times faster than an indirect sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, RankedDrop, whole_rows
from mergecore_kernels.torch_ops.counter_hash import WORD, hash_run
from mergecore_kernels.torch_ops.sieve import INFINITY
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace


def keep_by_rank(delta: Tensor, mask: RankedDrop, start: int, kept: Tensor, workspace: Workspace) -> None:
    """Write 1 to `kept` [n], bool or of any integer dtype, where the hash is below the threshold of the rank, else 0.

    Shapes: delta [n], whole rows; the elements from `start` on, which is the start of a row.
    NaN and Inf rank above every finite magnitude, as equals.
    """
    assert delta.numel() % mask.columns == start % mask.columns == 0, "rows must be whole"
    # So few rows at a time that the steps in between stay in the cache.
    step = whole_rows(CHUNK, mask.columns)
    for at in range(0, delta.numel(), step):
        rows = delta[at : at + step]
        n = rows.numel()
        hashes = workspace.take("long hashes", n, torch.int64).copy_(hash_run(mask.key, start + at, n, workspace))
        kept[at : at + n] = hashes.bitwise_and_(WORD) < keep_thresholds(rows, mask, workspace)


def keep_thresholds(delta: Tensor, mask: RankedDrop, workspace: Workspace) -> Tensor:
    """int64 [n] keep probability · 2³², rounded to nearest even from one float64 product and sum. Valid until the next
    call.
    """
    n, keys = delta.numel(), _sorted_keys(delta, mask.columns, workspace)
    place = torch.bitwise_and(keys, WORD, out=workspace.take("places", n, torch.int64))
    # Where runs of equals begin; also where a row does.
    begins = torch.empty(n, dtype=torch.bool, device=delta.device)
    magnitude = keys.bitwise_right_shift_(32)
    torch.ne(magnitude[1:], magnitude[:-1], out=begins[1:])
    begins[:: mask.columns] = True
    starts = begins.nonzero().view(-1)
    lengths = torch.diff(starts, append=starts.new_full((1,), n))
    # The ranks of the first and the last of the equals, added: twice their mean rank, from 0 on.
    ranks = 2 * (starts % mask.columns) + lengths - 1
    in_order = torch.repeat_interleave(thresholds_of(ranks, mask), lengths, output_size=n)
    return workspace.take("thresholds", n, torch.int64).scatter_(0, place, in_order)


def thresholds_of(doubled_ranks: Tensor, mask: RankedDrop) -> Tensor:
    """int64 [any length] keep probability · 2³² for twice the mean rank, from 0 to 2 · (columns - 1)."""
    low, step = linear_thresholds(mask)
    return doubled_ranks.to(torch.float64).mul_(step).add_(low).round_().clamp_(0, HASH_RANGE).to(torch.int64)


def linear_thresholds(mask: RankedDrop) -> tuple[float, float]:
    """Keep probability · 2³² of the first rank, and how much more it is from one doubled rank to the next."""
    # A row of one element has one rank, which is the mean.
    spread = mask.epsilon if mask.columns > 1 else 0.0
    return (mask.density - spread) * HASH_RANGE, spread * HASH_RANGE / max(mask.columns - 1, 1)


def magnitude_bits(delta: Tensor) -> Tensor:
    """int32 [n] bits of |δ| as float32, with NaN as Inf."""
    return (delta.to(torch.float32).view(torch.int32) & 0x7FFFFFFF).clamp_(max=INFINITY)


def _sorted_keys(delta: Tensor, columns: int, workspace: Workspace) -> Tensor:
    """int64 [n] bits of |δ| as float32, above the index in `delta`: rising within each row."""
    n = delta.numel()
    keys = workspace.take("rank keys", n, torch.int64).copy_(magnitude_bits(delta))
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(n, device=delta.device))
    if workspace.use_numpy:
        # Its sort is eight times faster than torch's.
        keys.numpy().reshape(-1, columns).sort(axis=1)
        return keys
    return torch.sort(keys.view(-1, columns), dim=1).values.view(-1)
