"""What masks keep, remembered from a measurement to the combination."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergecore_kernels.operations import CHUNK, Consensus, Drop, Key, MagnitudeSums, RankedDrop
from mergecore_kernels.torch_ops import Workspace, combine, masks, measure
from mergecore_kernels.torch_ops.kept_bits import KeptBits

MASKS = tuple(Drop(1 << 31, Key.of("drop", 1, "t", i)) for i in range(2))


@given(
    lengths=st.lists(st.integers(0, 40), max_size=8), ranges=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 40)))
)
def test_what_is_recalled_was_remembered(lengths, ranges):
    bits = KeptBits()
    bits.begin(MASKS, 1000)
    flags = torch.from_numpy(np.random.default_rng(0).random(400) < 0.5)
    start = 0
    for length in lengths:
        bits.remember(MASKS[1], start, flags[start : start + length])
        start += length
    for first, n in ranges:
        known = bits.recall(MASKS[1], first, n)
        if known is not None:
            assert first + n <= start
            assert torch.equal(known.bool(), flags[first : first + n])
        assert bits.recall(MASKS[0], first, n) is None


def test_room_is_kept():
    bits = KeptBits()
    bits.begin(MASKS, 3)
    for mask in MASKS:
        bits.remember(mask, 0, torch.ones(16, dtype=torch.bool))
    assert bits.recall(MASKS[0], 0, 16) is not None
    assert bits.recall(MASKS[1], 0, 16) is None


def test_another_mask_is_not_mistaken_for_it():
    """An equal one may be that of another tensor."""
    bits = KeptBits()
    bits.begin(MASKS, 1000)
    bits.remember(MASKS[0], 0, torch.ones(16, dtype=torch.bool))
    assert bits.recall(Drop(1 << 31, Key.of("drop", 1, "t", 0)), 0, 16) is None
    bits.begin(MASKS, 1000)
    assert bits.recall(MASKS[0], 0, 16) is None


@pytest.mark.parametrize("random", ["drop", "ranked"])
def test_combining_uses_what_measuring_found(fine_tunes, cut, monkeypatch, random):
    base, models = fine_tunes(3 * CHUNK + 48, (torch.bfloat16,) * 3)
    ranked = tuple(RankedDrop(0.5, 0.1, 48, Key.of("drop", 1, "t", i)) for i in range(2))
    chosen = MASKS if random == "drop" else ranked
    tiles = cut(models, base, 4 if random == "ranked" else 2)  # ranks need whole rows
    spec = Consensus((0.5, 0.25), chosen, (2.0, 2.0), elect=True, normalize=False, scale=1.0)

    def combined(workspace):
        out = torch.empty(len(models[0]), dtype=torch.bfloat16)
        for tile in tiles:
            combine(spec, tile, out[tile.start : tile.start + len(tile)], workspace)
        return out

    forgetful, workspace = Workspace("cpu", 0), Workspace("cpu", 1 << 20)
    want = combined(forgetful)
    assert measure(MagnitudeSums(chosen), tiles, forgetful) == measure(MagnitudeSums(chosen), tiles, workspace)
    monkeypatch.setattr(masks, "keep_at_random", None)
    monkeypatch.setattr(masks, "keep_by_rank", None)
    assert torch.equal(combined(workspace), want)
