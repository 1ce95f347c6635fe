"""Merges one tensor, or a span of one: measure, solve, combine, write."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mergecore import methods
from mergecore.errors import RunError
from mergecore.plan.plan import OutputTensor
from mergecore.stream.budget import tile_elements, tiles_bytes
from mergecore.stream.job import Job, OnProgress, Outcome, Setup
from mergecore.stream.reader import Buffers, Files, TensorTiles, raw_bytes, torch_dtype
from mergecore.stream.writer import ShardFiles
from mergecore_kernels.operations import Combine, Copy
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
        self._device = _device(setup.backend.device)
        self._workspace = Workspace(self._device, budget_bytes=0)

    def run(self, job: Job, on_progress: OnProgress) -> Outcome:
        """Merge the job's elements and write them to their place. Raises MergeError."""
        tensor = job.tensor
        tile = tile_elements(tensor, self._setup.budget_bytes)
        self._workspace.budget_bytes = self._setup.budget_bytes - tiles_bytes(tensor, tile)
        tiles = TensorTiles(tensor, job.start, job.stop, tile, self._files, self._buffers, self._device)
        tracked = _Tracked(tiles, on_progress)
        written = 0
        for start, data in self._merged(tensor, tracked):
            self._check_finite(tensor, tiles)
            self._output.write(tensor.shard, tensor.offset_bytes + start * tensor.dtype.size, data)
            on_progress(0, len(data))
            written += len(data)
        return Outcome(tiles.bytes_read, written, self._nonfinite(tensor, tiles))

    def close(self) -> None:
        self._files.close()
        self._output.close()

    def _merged(self, tensor: OutputTensor, tiles: _Tracked) -> Iterator[tuple[int, memoryview]]:
        """(first element, its bytes) of each output tile. The bytes hold until the next one is drawn."""
        combine = Copy() if tensor.method is None else self._solve(tensor, tiles)
        self._check_finite(tensor, tiles.tiles)
        for tile in tiles:
            if tensor.method is None:
                self._check_equal(tensor, tile)
            yield tile.start, raw_bytes(self._combined(tensor, combine, tile).cpu())

    def _solve(self, tensor: OutputTensor, tiles: _Tracked) -> Combine:
        """Run the method's recipe: each measurement that it asks for is a pass or more over the tiles."""
        assert tensor.method is not None
        recipe = methods.get(tensor.method).recipe(tensor.params, tensor.target(self._setup.seed))
        if not isinstance(recipe, Generator):
            return recipe
        answer: Any = None
        while True:
            try:
                question = recipe.send(answer)
            except StopIteration as end:
                combine: Combine = end.value
                return combine
            answer = self._operations.measure(question, tiles, self._workspace)

    def _combined(self, tensor: OutputTensor, combine: Combine, tile: Tile) -> Tensor:
        dtype = torch_dtype(tensor.dtype)
        if isinstance(combine, Copy) and tile.inputs[0].dtype == dtype:
            return tile.inputs[0]
        out = self._workspace.take("output", len(tile.inputs[0]), dtype)
        self._operations.combine(combine, tile, out, self._workspace)
        return out

    def _nonfinite(self, tensor: OutputTensor, tiles: TensorTiles) -> tuple[tuple[str, str, int], ...]:
        names = self._setup.model_names
        found = zip(tensor.sources, tiles.nonfinite, strict=True)
        return tuple((source.tensor_name, names[source.model], count) for source, count in found if count)

    def _check_finite(self, tensor: OutputTensor, tiles: TensorTiles) -> None:
        if self._setup.allow_nonfinite or not any(tiles.nonfinite):
            return
        name, model, count = self._nonfinite(tensor, tiles)[0]
        raise RunError.at(
            model,
            f"`{name}` holds NaN or infinite values ({count} in the part that was read)",
            "the model is damaged or diverged; --allow-nonfinite merges it all the same",
        )

    def _check_equal(self, tensor: OutputTensor, tile: Tile) -> None:
        """Tensors that can't be merged can be copied if all inputs are the same."""
        names = self._setup.model_names
        for source, other in zip(tensor.inputs[1:], tile.inputs[1:], strict=True):
            if not torch.equal(tile.inputs[0].view(torch.uint8), other.view(torch.uint8)):
                raise RunError.at(
                    names[source.model],
                    f"`{tensor.name}` is not floating point, so it can only be copied, but it differs from the one of "
                    f"{names[tensor.inputs[0].model]}",
                )


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


def _device(name: str) -> torch.device:
    """The device, if it is there. Raises RunError."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError.at(
            "--device", f"`{name}` can't be used: {reason}", "leave it out to merge on the CPU"
        ) from error
    return device
