"""What keeps the k largest magnitudes, noted in the pass that finds the k-th."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import CHUNK, Key, KthMagnitudes
from mergecore_kernels.torch_ops import Workspace, masks, measure
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.rank_order import RankOrder

KEY = Key.of("trim", 0, "t", 0)
BF16 = torch.bfloat16


def trimmed(fine_tunes, cut, n, k, budget_bytes, spread=0.002):
    """The delta of a fine-tune with its k largest magnitudes kept, the trim, and the workspace."""
    base, (model,) = fine_tunes(n, (BF16, BF16), spread)
    workspace = Workspace("cpu", budget_bytes)
    (trim,) = measure(KthMagnitudes((k,), (KEY,)), cut([model], base, 2), workspace)
    delta = model.float() - base.float()
    for at in range(0, n, 2 * CHUNK):
        apply_mask(delta[at : at + 2 * CHUNK], trim, at, workspace)
    return delta, trim, workspace


@pytest.mark.parametrize("spread", [0.002, 0.00002])  # magnitudes of all kinds, or few different ones
@pytest.mark.parametrize("density", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("n", [5 * CHUNK + 3, 4 * CHUNK])
def test_the_same_as_comparing_magnitudes(fine_tunes, cut, monkeypatch, n, density, spread):
    k = int(n * density)
    want, trim, forgetful = trimmed(fine_tunes, cut, n, k, budget_bytes=0, spread=spread)
    assert forgetful.kept_bits.recall(trim, 0, 8) is None
    if trim.magnitude > 0:
        monkeypatch.setattr(masks, "trim", None)
    got, _, _ = trimmed(fine_tunes, cut, n, k, budget_bytes=64 << 20, spread=spread)
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))
    if trim.magnitude > 0:
        assert np.count_nonzero(got) == k


@settings(max_examples=50)
@given(
    pieces=st.lists(st.lists(st.integers(0, 9), min_size=8, max_size=8), min_size=1, max_size=6),
    low=st.integers(0, 9),
    cut_at=st.integers(0, 9),
    room=st.integers(0, 300),
)
def test_any_order(pieces, low, cut_at, room):
    """Of elements with these ranks, those from `low` on are in the interval."""
    order = RankOrder(room)
    for i, ranks in enumerate(np.array(pieces)):
        offsets = np.flatnonzero(ranks >= low)
        order.add(8 * i, ranks < low, offsets, ranks[offsets])
    flags = order.up_to(cut_at)
    ranks = np.array(pieces).reshape(-1)
    needed = len(ranks) // 8 + 12 * int((ranks >= low).sum())
    assert (flags is None) == (needed > room)
    if flags is not None:
        want = (ranks < low) | (ranks <= cut_at)
        assert flags.read(0, len(ranks)).astype(bool).tolist() == want.tolist()
