"""Drop elements at random, those of small magnitude within their row more often: DELLA's mask.

The probability of being kept rises with the rank of |δ| in the row. Equal magnitudes share the mean of their ranks, so
they have equal probabilities, no order of the elements plays a part, and the mean over the row is `density` exactly.

Run on a GPU, the sort of the rows takes most of the time: some passes over 12 bytes per element. A kernel would hold a
row in shared memory and take ranks from its histogram.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, RankedDrop
from mergecore_kernels.torch_ops.arithmetic import BITS
from mergecore_kernels.torch_ops.counter_hash import WORD, hash_run
from mergecore_kernels.torch_ops.sieve import INFINITY
from mergecore_kernels.torch_ops.tile import PIECE
from mergecore_kernels.torch_ops.workspace import Workspace


def ranked_drop(delta: Tensor, mask: RankedDrop, start: int, workspace: Workspace) -> None:
    """Set the elements of `delta` whose hash is at or above the threshold of their rank to +0, in place.

    Shapes: delta [n], whole rows, within one block of hashes; the elements from `start` on, a multiple of CHUNK and of
    the length of a row times its stride.
    NaN and Inf rank above every finite magnitude, as equals.
    """
    group = mask.columns * mask.stride
    assert delta.numel() % group == start % group == 0, "rows must be whole"
    kept = workspace.take("kept", delta.numel(), BITS[delta.dtype])
    hashes = hash_run(mask.key, start, delta.numel(), workspace)
    step = group * max(PIECE // group, 1)
    for at in range(0, delta.numel(), step):
        part = slice(at, at + step)
        thresholds = keep_thresholds(delta[part], mask, workspace)
        kept[part] = (hashes[part].to(torch.int64) & WORD) < thresholds
    # The bits times 1 or 0: a dropped NaN or Inf is gone.
    delta.view(kept.dtype).mul_(kept)


def keep_thresholds(delta: Tensor, mask: RankedDrop, workspace: Workspace) -> Tensor:
    """int64 [n] keep probability · 2³², rounded to nearest even from one float64 product and sum."""
    # A row of one element has one rank, which is the mean.
    spread = mask.epsilon if mask.columns > 1 else 0.0
    low = (mask.density - spread) * HASH_RANGE
    step = spread * HASH_RANGE / max(mask.columns - 1, 1)
    ranks = doubled_ranks(delta, mask.columns, mask.stride, workspace)
    return ranks.to(torch.float64).mul_(step).add_(low).round_().clamp_(0, HASH_RANGE).to(torch.int64)


def doubled_ranks(delta: Tensor, columns: int, stride: int, workspace: Workspace) -> Tensor:
    """int64 [n] twice the mean rank of |δ| as float32 among the equals of its row, from 0 to 2 · (columns - 1).

    That is the number of smaller elements of the row, and that of the others that aren't larger, added.
    """
    bits = (delta.to(torch.float32).view(torch.int32) & 0x7FFFFFFF).clamp_(max=INFINITY)
    rows = bits.view(-1, columns, stride).transpose(1, 2).contiguous()
    if workspace.use_numpy:
        # Its sort is four times faster than torch's.
        order = torch.from_numpy(np.argsort(rows.numpy(), axis=2))
        ordered = rows.gather(2, order)
    else:
        ordered, order = torch.sort(rows, dim=2)
    edge = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[..., 1:], ordered[..., :-1], out=edge[..., 1:])
    # Runs of equals: the places of the first and the last one, added.
    starts = edge.view(-1).nonzero().view(-1)
    lengths = torch.diff(starts, append=starts.new_full((1,), edge.numel()))
    sums = torch.repeat_interleave(2 * (starts % columns) + lengths - 1, lengths, output_size=edge.numel())
    ranks = torch.empty_like(order).scatter_(2, order, sums.view(order.shape))
    return ranks.transpose(1, 2).reshape(-1)
