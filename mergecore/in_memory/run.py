"""Merges the tensors of a call, each on the device that it is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mergecore.errors import RunError
from mergecore.in_memory.tasks import Task
from mergecore.methods import Method, plugins
from mergecore.stream.backend import choose_backend
from mergecore.stream.solve import solve
from mergecore_kernels.operations import CHUNK, Combine, Measure, row_length, whole_rows
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace

_CPU_TILE = 4 * CHUNK
_GPU_TILE = 64 * CHUNK
"""Elements that are worked on at a time. Results don't depend on it."""
_SCRATCH_BYTES = 1 << 26
"""What an operation may hold beside its tile-sized buffers."""


def run(method: Method, tasks: Mapping[str, Task]) -> dict[str, Tensor]:
    """The merged tensors, by name."""
    devices = {device: _Device(device) for device in {task.inputs[0].device for task in tasks.values()}}
    merged = [task for task in tasks.values() if task.params is not None]
    survey = _survey(method, merged, devices) if method.survey is not None and merged else None
    return {
        name: devices[task.inputs[0].device].merged(method, replace(task, target=replace(task.target, survey=survey)))
        for name, task in tasks.items()
    }


def _survey(method: Method, tasks: Sequence[Task], devices: Mapping[torch.device, _Device]) -> Any:
    """What the method wants to know of all tensors before the first one is merged."""
    assert method.survey is not None
    looks = method.survey([(task.params, task.target) for task in tasks])
    try:
        while True:
            look = next(looks)
            for task in tasks:
                question = look.question(task.params, task.target)
                if question is not None:
                    look.add(task.target, devices[task.inputs[0].device].measured(question, task))
    except StopIteration as end:
        return end.value


class _Device:
    """Merges tensors on one device, in scratch memory that is kept."""

    def __init__(self, device: torch.device) -> None:
        backend = choose_backend("auto", str(device))
        self._operations = import_module(f"mergecore_kernels.{backend.name}_ops")
        self._workspace = Workspace(device, _SCRATCH_BYTES)
        self._device = device
        self._step = _CPU_TILE if device.type == "cpu" else _GPU_TILE

    def measured(self, question: Measure, task: Task) -> Any:
        """The answer to a question about all of a tensor."""
        with self._current():
            return self._operations.measure(question, _tiles(task, self._step), self._workspace)

    def merged(self, method: Method, task: Task) -> Tensor:
        """A new tensor."""
        if task.params is None:
            return task.inputs[0].to(task.dtype, copy=True, memory_format=torch.contiguous_format)
        tiles = _tiles(task, self._step)

        def measure(question: Measure) -> Any:
            return self._operations.measure(question, tiles, self._workspace)

        with self._current():
            combine = solve(method, task.params, task.target, measure)
            columns = row_length(combine)
            if columns > 1:
                tiles = _tiles(task, whole_rows(self._step, columns))
            return self._combined(method, task, combine, tiles)

    def _combined(self, method: Method, task: Task, combine: Combine, tiles: list[Tile]) -> Tensor:
        out = torch.empty(task.target.n, dtype=task.dtype, device=self._device)
        for tile in tiles:
            with plugins.blamed(method, task.target.name, RunError):
                self._operations.combine(combine, tile, out[tile.start : tile.start + len(tile)], self._workspace)
        return out.view(task.target.shape)

    def _current(self) -> AbstractContextManager[Any]:
        """Kernels are launched on the current device."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _tiles(task: Task, step: int) -> list[Tile]:
    """Views of the tensors, so many elements at a time. A tensor whose elements don't follow one another is copied."""
    inputs = [x.detach().reshape(-1) for x in task.inputs]
    base = None if task.base is None else task.base.detach().reshape(-1)
    return [
        Tile(
            start,
            [x[start : start + step] for x in inputs],
            None if base is None else base[start : start + step],
            task.compute,
        )
        for start in range(0, task.target.n, step)
    ]
