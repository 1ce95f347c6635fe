"""Tiles and their pieces."""

import pytest
import torch

from mergecore_kernels.torch_ops.tile import CHUNK, Tile


@pytest.mark.parametrize(
    ("start", "n", "starts"),
    [
        (0, 0, [0]),
        (0, 1, [0]),
        (0, 2 * CHUNK, [0]),
        (CHUNK, 2 * CHUNK, [CHUNK, 2 * CHUNK]),
        (CHUNK, 3 * CHUNK + 7, [CHUNK, 2 * CHUNK, 4 * CHUNK]),
        ((1 << 32) - CHUNK, CHUNK + 5, [(1 << 32) - CHUNK, 1 << 32]),
    ],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_pieces_cover_the_tile_and_end_at_multiples_of_their_size(start, n, starts, with_base):
    """So no piece reaches into another block of hashes: those are multiples too."""
    x = torch.arange(n)
    tile = Tile(start, [x, -x], x + 1 if with_base else None, torch.float32)
    pieces = list(tile.pieces(2 * CHUNK))
    assert [piece.start for piece in pieces] == starts
    assert torch.equal(torch.cat([piece.inputs[0] for piece in pieces]), x)
    assert torch.equal(torch.cat([piece.inputs[1] for piece in pieces]), -x)
    assert all((piece.base is not None) == with_base for piece in pieces)
    assert all(torch.equal(piece.base, piece.inputs[0] + 1) for piece in pieces if with_base)


def test_pieces_are_views():
    x = torch.zeros(3 * CHUNK)
    for piece in Tile(0, [x], None, torch.float32).pieces(CHUNK):
        piece.inputs[0].fill_(piece.start)
    assert x[::CHUNK].tolist() == [0, CHUNK, 2 * CHUNK]
