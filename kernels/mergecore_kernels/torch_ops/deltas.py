"""All deltas of a tile at once, for operations that look at the models together."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace


def load_deltas(tile: Tile, workspace: Workspace) -> tuple[Tensor, list[Tensor]]:
    """[n] the base and M x [n] the deltas, in the compute dtype. The deltas are in buffers and may be changed."""
    assert tile.base is not None, "deltas need a base"
    n, compute = len(tile), tile.compute
    base = load(tile.base, workspace.take("base", n, compute))
    deltas = [load_delta(x, base, workspace.take(f"delta {i}", n, compute)) for i, x in enumerate(tile.inputs)]
    return base, deltas
