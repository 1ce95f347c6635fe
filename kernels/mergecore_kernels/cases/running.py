"""Run a case with a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mergecore_kernels.cases.case import SCRATCH_BYTES
from mergecore_kernels.cases.data import Data
from mergecore_kernels.operations import Combine, Measure
from mergecore_kernels.torch_ops import Tile, Tiles, Workspace


class Ops(Protocol):
    """What `torch_ops` and `triton_ops` have in common."""

    def measure(self, spec: Measure, tiles: Tiles, workspace: Workspace) -> Any: ...
    def combine(self, spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None: ...
    def count_nonfinite(self, x: Tensor) -> int: ...
    def count_nonfinite_batch(self, tensors: Sequence[Tensor]) -> list[int]: ...
    def measure_batch(self, jobs: Sequence[tuple[Measure, Tiles]], workspace: Workspace) -> list[Any]: ...
    def combine_batch(self, jobs: Sequence[tuple[Combine, Tile, Tensor]], workspace: Workspace) -> None: ...


def new_workspace(device: torch.device | str) -> Workspace:
    """Scratch memory for cases on a device."""
    return Workspace(device, SCRATCH_BYTES)


def run_case(ops: Ops, data: Data, workspace: Workspace) -> Any:
    """The output tensor, or what was measured."""
    if data.spec is None:
        return sum(ops.count_nonfinite(tile.inputs[0]) for tile in data.tiles())
    if data.out is None:
        return ops.measure(cast("Measure", data.spec), data.tiles(), workspace)
    for spec, tile, out in _combine_jobs(data, data.out):
        ops.combine(spec, tile, out, workspace)
    return data.out


def run_batch(ops: Ops, batch: Sequence[Data], workspace: Workspace) -> list[Any]:
    """The same for many tensors of one operation at once."""
    if batch[0].spec is None:
        return ops.count_nonfinite_batch([data.inputs[0] for data in batch])
    outs = [data.out for data in batch if data.out is not None]
    if not outs:
        return ops.measure_batch([(cast("Measure", data.spec), data.tiles()) for data in batch], workspace)
    pairs = zip(batch, outs, strict=True)
    ops.combine_batch([job for data, out in pairs for job in _combine_jobs(data, out)], workspace)
    return list(outs)


def _combine_jobs(data: Data, out: Tensor) -> Iterator[tuple[Combine, Tile, Tensor]]:
    for tile in data.tiles():
        at = tile.start - data.start
        yield cast("Combine", data.spec), tile, out[at : at + len(tile)]
