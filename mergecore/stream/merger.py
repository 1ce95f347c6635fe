"""Merges one tensor, or a span of one: measure, solve, combine, write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mergecore import methods
from mergecore.errors import RunError
from mergecore.methods.plugins import blamed
from mergecore.plan.plan import OutputTensor
from mergecore.stream.budget import tile_elements, tiles_bytes
from mergecore.stream.digests import BlockHasher
from mergecore.stream.findings import Nonfinite, difference_error, nonfinite_error, nonfinite_sources
from mergecore.stream.job import Job, OnProgress, Outcome, Setup
from mergecore.stream.reader import Buffers, Files, TensorTiles, raw_bytes
from mergecore.stream.solve import solve
from mergecore.stream.torch_dtypes import torch_dtype
from mergecore.stream.writer import ShardFiles
from mergecore_kernels.operations import Combine, Copy, Measure, row_length
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace


class Merger:
    """Runs jobs one after the other, in buffers that are kept."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._files = Files()
        self._output = ShardFiles(setup.folder, setup.shards)
        self._buffers = Buffers()
        self._operations = import_module(f"mergecore_kernels.{setup.backend.name}_ops")
        self._workspace = Workspace(setup.backend.device, budget_bytes=0)

    def run(self, job: Job, on_progress: OnProgress) -> Outcome:
        """Merge the job's elements and write them to their place; or answer its question. Raises MergeError."""
        tensor = job.tensor
        tile = tile_elements(tensor, self._setup.budget_bytes)
        self._workspace.budget_bytes = self._setup.budget_bytes - tiles_bytes(tensor, tile)
        tiles = TensorTiles(tensor, job.start, job.stop, tile, self._files, self._buffers, self._workspace)
        tracked = _Tracked(tiles, on_progress)
        if job.question is not None:
            answer = self._operations.measure(job.question, tracked, self._workspace)
            self._check_finite(tensor, tiles)
            return Outcome(tiles.bytes_read, 0, (), job, answer)
        written = 0
        hasher = BlockHasher(job.start * tensor.dtype.size, tensor.n_bytes)
        for start, data in self._merged(tensor, tracked):
            self._check_finite(tensor, tiles)
            self._output.write(tensor.shard, tensor.offset_bytes + start * tensor.dtype.size, data)
            hasher.add(data)
            on_progress(0, len(data))
            written += len(data)
        return Outcome(tiles.bytes_read, written, self._nonfinite(tensor, tiles), job, blocks=hasher.found)

    def close(self) -> None:
        self._files.close()
        self._output.close()

    def _merged(self, tensor: OutputTensor, tiles: _Tracked) -> Iterator[tuple[int, memoryview]]:
        """(first element, its bytes) of each output tile. The bytes hold until the next one is drawn."""
        combine = Copy() if tensor.method is None else self._solve(tensor, tiles)
        tiles.tiles.align(row_length(combine))
        self._check_finite(tensor, tiles.tiles)
        for tile in tiles:
            if tensor.method is None:
                self._check_equal(tensor, tile)
            yield tile.start, raw_bytes(self._combined(tensor, combine, tile))

    def _solve(self, tensor: OutputTensor, tiles: _Tracked) -> Combine:
        """Each measurement that the method's recipe asks for is a pass or more over the tiles."""
        assert tensor.method is not None
        assert tensor.params is not None
        target = tensor.target(self._setup.seed, self._setup.survey)

        def measure(question: Measure) -> Any:
            return self._operations.measure(question, tiles, self._workspace)

        return solve(methods.get(tensor.method), tensor.params, target, measure)

    def _combined(self, tensor: OutputTensor, combine: Combine, tile: Tile) -> Tensor:
        dtype = torch_dtype(tensor.dtype)
        if isinstance(combine, Copy) and tile.inputs[0].dtype == dtype:
            return tile.inputs[0]
        out = self._workspace.take("output", len(tile.inputs[0]), dtype)
        with nullcontext() if tensor.method is None else blamed(methods.get(tensor.method), tensor.name, RunError):
            self._operations.combine(combine, tile, out, self._workspace)
        return out

    def _nonfinite(self, tensor: OutputTensor, tiles: TensorTiles) -> Nonfinite:
        return nonfinite_sources(tensor, tiles.nonfinite, self._setup.model_names)

    def _check_finite(self, tensor: OutputTensor, tiles: TensorTiles) -> None:
        if any(tiles.nonfinite) and not self._setup.allow_nonfinite:
            raise nonfinite_error(self._nonfinite(tensor, tiles))

    def _check_equal(self, tensor: OutputTensor, tile: Tile) -> None:
        """Tensors that can't be merged can be copied if all inputs are the same."""
        for source, other in zip(tensor.inputs[1:], tile.inputs[1:], strict=True):
            if not torch.equal(tile.inputs[0].view(torch.uint8), other.view(torch.uint8)):
                raise difference_error(tensor, source, self._setup.model_names)


class _Tracked:
    """Tiles that report the bytes read for each."""

    def __init__(self, tiles: TensorTiles, on_progress: OnProgress) -> None:
        self.tiles = tiles
        self._on_progress = on_progress

    def __iter__(self) -> Iterator[Tile]:
        before = self.tiles.bytes_read
        for tile in self.tiles:
            self._on_progress(self.tiles.bytes_read - before, 0)
            before = self.tiles.bytes_read
            yield tile
