"""Normal random numbers: their distribution, and what each depends on."""

from __future__ import annotations

import math

import torch

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops import CHUNK
from mergecore_kernels.torch_ops.normal import _inverse_error_function, normal

KEYS = Key("a"), Key("b")
F64 = torch.float64


def test_distribution(workspace) -> None:
    z = normal(KEYS[0], 0, 1 << 20, workspace).double()
    n = len(z)
    for power, want, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - want) < 4 * math.sqrt(variance / n)
    shares = torch.special.ndtr(torch.linspace(-3, 3, 13, dtype=F64))
    found = torch.searchsorted(z.sort().values, torch.linspace(-3, 3, 13, dtype=F64)) / n
    assert (found - shares).abs().max() < 4 * math.sqrt(0.25 / n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n)


def test_it_is_the_inverse_of_the_distribution() -> None:
    tails = torch.logspace(-9.6, 0, 20_001, dtype=F64).float()
    got = _inverse_error_function(tails).double() * math.sqrt(2)
    want = -torch.special.ndtri(tails.double() / 2)
    error = (got - want).abs()
    assert (error <= 1e-6 * want + 1e-7)[want < 5.5].all()
    assert (error <= 1e-3 * want).all()


def test_a_number_depends_on_key_and_index_alone(workspace) -> None:
    whole = normal(KEYS[0], 0, 3 * CHUNK, workspace)
    assert torch.equal(whole[70_000:150_001], normal(KEYS[0], 70_000, 80_001, workspace))
    assert not torch.equal(whole[:100], normal(KEYS[1], 0, 100, workspace))


def test_blocks_of_hashes_follow_one_another(workspace) -> None:
    start = (1 << 32) - 5
    both = normal(KEYS[0], start, 10, workspace).clone()
    assert torch.equal(both[5:], normal(KEYS[0], 1 << 32, 5, workspace))
