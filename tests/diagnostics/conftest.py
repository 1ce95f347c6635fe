"""Backends that stand in for kernels on a GPU: the torch twins on the CPU, right and broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from mergecore_kernels import torch_ops
from mergecore_kernels.operations import Combine, Measure
from mergecore_kernels.torch_ops import Tile, Tiles, Workspace


class Kernels:
    """What triton_ops offers, done by the torch twins."""

    def measure(self, spec: Measure, tiles: Tiles, workspace: Workspace) -> Any:
        return torch_ops.measure(spec, tiles, workspace)

    def combine(self, spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None:
        torch_ops.combine(spec, tile, out, workspace)

    def count_nonfinite(self, x: Tensor) -> int:
        return torch_ops.count_nonfinite(x)

    def count_nonfinite_batch(self, tensors: Sequence[Tensor]) -> list[int]:
        return [self.count_nonfinite(x) for x in tensors]

    def measure_batch(self, jobs: Sequence[tuple[Measure, Tiles]], workspace: Workspace) -> list[Any]:
        return [self.measure(spec, tiles, workspace) for spec, tiles in jobs]

    def combine_batch(self, jobs: Sequence[tuple[Combine, Tile, Tensor]], workspace: Workspace) -> None:
        for spec, tile, out in jobs:
            self.combine(spec, tile, out, workspace)


class BrokenKernels(Kernels):
    """The last element of each output tile is off by one bit or so, and nothing can be measured."""

    def measure(self, spec: Measure, tiles: Tiles, workspace: Workspace) -> Any:
        raise RuntimeError("no kernel image in /home/someone/.triton/cache/ties.cubin\nand more")

    def combine(self, spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None:
        torch_ops.combine(spec, tile, out, workspace)
        out[-1] = 1.5


@pytest.fixture
def kernels() -> Kernels:
    return Kernels()


@pytest.fixture
def broken_kernels() -> BrokenKernels:
    return BrokenKernels()
