"""Merge tensors by a method's recipe, with the operations in torch: no file, no plan."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mergecore import methods
from mergecore.methods import Target
from mergecore_kernels import torch_ops
from mergecore_kernels.torch_ops import Tile, Workspace

Array = NDArray[np.float64]
MergeArrays = Callable[..., Array]


@pytest.fixture(scope="session")
def merge_arrays() -> MergeArrays:
    """merge_arrays(method, base, models, **parameters) -> what the method makes of them, computed in float32.

    A `base` of None is none.
    """

    def merge(method: str, base: Array | None, models: Sequence[Array], **parameters: Any) -> Array:
        found = methods.get(method)
        workspace = Workspace("cpu", 64 << 20)
        shape, n = models[0].shape, models[0].size
        flat = [None if x is None else torch.from_numpy(x).to(torch.float32).view(-1) for x in (base, *models)]
        tile = Tile(0, flat[1:], flat[0], torch.float32)
        combine = found.recipe(
            found.params(**parameters), Target("a.weight", n, tuple(range(len(models))), None, seed=0, shape=shape)
        )
        if isinstance(combine, Generator):
            combine = _answered(combine, tile, workspace)
        out = torch.full((n,), torch.nan)
        torch_ops.combine(combine, tile, out, workspace)
        return out.to(torch.float64).view(shape).numpy()

    return merge


def _answered(recipe: Generator[Any, Any, Any], tile: Tile, workspace: Workspace) -> Any:
    """The combination of a recipe that measures."""
    answer: Any = None
    while True:
        try:
            answer = torch_ops.measure(recipe.send(answer), [tile], workspace)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="session")
def unlike_models() -> Callable[..., tuple[Array, list[Array]]]:
    """unlike_models(n, m, seed=0) -> base [n] and m models [n]. All are exact in float32, and so are the deltas; the
    magnitudes of a delta are distinct.
    """

    def make(n: int, m: int, seed: int = 0) -> tuple[Array, list[Array]]:
        generator = np.random.default_rng(seed)
        unit = 2.0**-14
        base: Array = generator.integers(-1000, 1000, n) * unit
        deltas = [generator.permutation(np.arange(1, n + 1)) * generator.choice([-unit, unit], n) for _ in range(m)]
        return base, [base + delta for delta in deltas]

    return make
