"""Noise and factors on the runs of a tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Key, Perturb, Perturbation
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.normal import normal

KEYS = Key("a"), Key("b"), Key("c")
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


def perturbed(x: Tensor, spec: Perturb, workspace: Workspace, step: int = CHUNK, dtype: torch.dtype = F32) -> Tensor:
    """In tiles of so many elements."""
    compute = F64 if x.dtype is F64 else F32
    out = torch.full((len(x),), math.nan, dtype=dtype)
    for start in range(0, len(x), step):
        tile = Tile(start, [x[start : start + step]], None, compute)
        torch_ops.combine(spec, tile, out[start : start + step], workspace)
    return out


def test_each_run_has_its_own(workspace) -> None:
    x = torch.linspace(-1, 1, 30)
    runs = (Perturbation(0.5, 1.0, KEYS[0]), Perturbation(0.0, 2.0, KEYS[1]), Perturbation(0.25, -1.0, KEYS[2]))
    got = perturbed(x, Perturb(runs, 10), workspace)
    z = [normal(key, 0, 10, workspace).clone() for key in KEYS]
    assert torch.equal(got[:10], x[:10] + z[0] * 0.5)
    assert torch.equal(got[10:20], x[10:20] * 2)
    assert torch.equal(got[20:], (x[20:] + z[2] * 0.25) * -1)


@pytest.mark.parametrize("step", [CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_tiles_change_nothing(workspace, step, dtype) -> None:
    elements = CHUNK + 1001
    x = torch.randn(3 * elements, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
    spec = Perturb(tuple(Perturbation(0.1, 0.7, key) for key in KEYS), elements)
    whole = perturbed(x, spec, workspace, step=4 * CHUNK, dtype=dtype)
    assert torch.equal(whole, perturbed(x, spec, workspace, step=step, dtype=dtype))
    z = torch.cat([normal(key, 0, elements, workspace).clone() for key in KEYS])
    exact = 0.7 * (x.double() + 0.1 * z.double())
    compute = F64 if dtype is F64 else F32
    # The noise, a product, a sum and another product are rounded to the compute dtype, and the result to its own.
    bound = 4 * torch.finfo(compute).eps * (x.double().abs() + 1) + torch.finfo(dtype).eps * exact.abs()
    assert ((whole.double() - exact).abs() <= bound).all()


def test_without_noise_a_zero_keeps_its_sign(workspace) -> None:
    x = torch.tensor([-0.0, 0.0])
    got = perturbed(x, Perturb((Perturbation(0.0, 1.0, KEYS[0]),), 2), workspace)
    assert torch.equal(torch.signbit(got), torch.signbit(x))


def test_the_other_backend_gives_the_same_bits() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2)).to(BF16)
    spec = Perturb((Perturbation(0.1, 0.5, KEYS[0]), Perturbation(0.2, 1.0, KEYS[1])), 2500)
    got = torch.empty(5000, dtype=BF16)
    triton_ops.combine(spec, Tile(0, [x], None, F32), got, Workspace("cpu", 0))
    assert torch.equal(got, perturbed(x, spec, Workspace("cpu", 0), dtype=BF16))
