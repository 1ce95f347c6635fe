"""A torch function of tiles that is no operation of ours."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.operations import TileFunction
from mergecore_kernels.torch_ops.arithmetic import store
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace


def tile_function(tile: Tile, spec: TileFunction, out: Tensor, workspace: Workspace) -> None:
    """[n] what the function makes of copies of the inputs and the base, rounded once.

    Raises TypeError if that is no tensor of [n] floating point numbers on the tile's device.
    """
    n, compute = len(tile), tile.compute
    inputs = [workspace.take(f"input {i}", n, compute).copy_(x) for i, x in enumerate(tile.inputs)]
    base = None if tile.base is None else workspace.take("base", n, compute).copy_(tile.base)
    result = spec.function(inputs, base)
    if not isinstance(result, Tensor):
        raise TypeError(f"expected a tensor of shape [{n}], found {result!r:.60}")
    if result.shape != (n,) or not result.is_floating_point() or result.device != out.device:
        found = f"one of shape {list(result.shape)}, {result.dtype}, on {result.device}"
        raise TypeError(f"expected a floating point tensor of shape [{n}] on {out.device}, found {found}")
    store(result.detach(), out)
