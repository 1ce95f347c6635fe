"""Noise and a factor on runs of elements."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.operations import Perturb
from mergecore_kernels.torch_ops.arithmetic import rounded, store
from mergecore_kernels.torch_ops.normal import normal
from mergecore_kernels.torch_ops.tile import PIECE, Tile
from mergecore_kernels.torch_ops.workspace import Workspace


def perturb(tile: Tile, spec: Perturb, out: Tensor, workspace: Workspace) -> None:
    """[n] scale · (x + noise · z), each step rounded. The random numbers z are float32 also where x is float64.

    Without noise nothing is added, so that a zero keeps its sign.
    """
    for piece in tile.pieces(PIECE):
        n, compute = len(piece), piece.compute
        values = workspace.take("total", n, compute).copy_(piece.inputs[0])
        at = 0
        while at < n:
            number, first = divmod(piece.start + at, spec.elements)
            end = min(at + spec.elements - first, n)
            _perturb_run(values[at:end], spec, number, first, workspace)
            at = end
        begin = piece.start - tile.start
        store(values, out[begin : begin + n])


def _perturb_run(values: Tensor, spec: Perturb, number: int, first: int, workspace: Workspace) -> None:
    """In place: values [n] are elements of one run, from its element `first` on."""
    run = spec.runs[number]
    if run.noise:
        z = normal(run.key, first, len(values), workspace).to(values.dtype)
        values.add_(z.mul_(rounded(run.noise, values.dtype)))
    if run.scale != 1:
        values.mul_(rounded(run.scale, values.dtype))
