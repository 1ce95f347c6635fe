"""Drawn gates: their distribution, and that each number depends on its place alone."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.moe.random_gates import Distribution, random_gates

DISTRIBUTIONS: list[Distribution] = ["random", "uniform_random"]


def largest_distance(values: torch.Tensor, cumulative: list[float]) -> float:
    """The statistic of Kolmogorov and Smirnov, times √n: above 1.95 in one of a thousand draws."""
    n = len(values)
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return float((steps - torch.tensor(cumulative, dtype=torch.float64)).abs().max()) * math.sqrt(n)


def test_normal_numbers() -> None:
    gates = random_gates("random", layers=4, experts=8, hidden_size=1024, seed=3)
    assert gates.dtype is torch.float32
    assert gates.shape == (4, 8, 1024)
    values = gates.double().flatten().sort().values
    assert largest_distance(values, [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values.tolist()]) < 1.95
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / len(values))


def test_uniform_numbers() -> None:
    gates = random_gates("uniform_random", layers=4, experts=8, hidden_size=1024, seed=3)
    values = gates.double().flatten().sort().values * math.sqrt(1024)
    assert values.abs().max() <= 1
    assert largest_distance(values, ((values + 1) / 2).tolist()) < 1.95


def test_neighbours_are_independent() -> None:
    gates = random_gates("random", layers=4, experts=8, hidden_size=1024, seed=0).double()
    flat = gates.flatten()
    for product in (flat[1:] * flat[:-1], gates[0] * gates[1], gates[:, 0] * gates[:, 1]):
        assert abs(float(product.mean())) < 4 / math.sqrt(product.numel())


def test_bits_of_uniform_numbers() -> None:
    """They are the same on every machine. Those of normal numbers are tested with the kernels."""
    gates = random_gates("uniform_random", layers=2, experts=3, hidden_size=33, seed=42)
    assert hashlib.sha256(gates.numpy().astype("<f4").tobytes()).hexdigest()[:16] == "56f608c274dde03a"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=25)
@given(layers=st.integers(1, 3), experts=st.integers(1, 4), seed=st.integers(0, 2**63))
def test_gates_do_not_depend_on_what_comes_after(
    distribution: Distribution, layers: int, experts: int, seed: int
) -> None:
    large = random_gates(distribution, layers=3, experts=4, hidden_size=16, seed=seed)
    small = random_gates(distribution, layers=layers, experts=experts, hidden_size=16, seed=seed)
    assert torch.equal(small, large[:layers, :experts])
    assert not torch.equal(
        small, random_gates(distribution, layers=layers, experts=experts, hidden_size=16, seed=seed + 1)
    )
    assert len(large.unique()) > 4 * 3 * 16 - 3
