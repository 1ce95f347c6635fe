"""Gate vectors that are drawn, for a mixture that will be trained.

Each number is a function of (seed, layer, expert, element): the same bits on every machine, and the same for an expert
whatever comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key
from mergecore_kernels.torch_ops.counter_hash import hash_offsets
from mergecore_kernels.torch_ops.normal import normal
from mergecore_kernels.torch_ops.workspace import Workspace

Distribution = Literal["random", "uniform_random"]


def random_gates(distribution: Distribution, *, layers: int, experts: int, hidden_size: int, seed: int) -> Tensor:
    """float32 [layers, experts, hidden] `random`: normal, of variance 1. `uniform_random`: in ±1/√hidden."""
    draw: Callable[[Key, int], Tensor] = _normal if distribution == "random" else _uniform
    keys = [Key.of("gate", seed, f"layer {layer}", expert) for layer in range(layers) for expert in range(experts)]
    return torch.stack([draw(key, hidden_size) for key in keys]).view(layers, experts, hidden_size)


def _normal(key: Key, n: int) -> Tensor:
    return normal(key, 0, n, Workspace("cpu", budget_bytes=0))


def _uniform(key: Key, n: int) -> Tensor:
    share = (hash_offsets(key, 0, np.arange(n)) + 0.5) / HASH_RANGE
    return torch.from_numpy((2.0 * share - 1.0) / math.sqrt(n)).float()
