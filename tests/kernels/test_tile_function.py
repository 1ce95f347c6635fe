"""Functions of tiles that are no operations of ours."""

from __future__ import annotations

import pytest
import torch

from mergecore_kernels import torch_ops
from mergecore_kernels.operations import TileFunction
from mergecore_kernels.torch_ops import Tile, Workspace


def run(function, x: torch.Tensor, base: torch.Tensor | None = None, out=torch.bfloat16, compute=torch.float32):
    result = torch.full_like(x, torch.nan, dtype=out)
    torch_ops.combine(TileFunction(function), Tile(0, [x], base, compute), result, Workspace("cpu", 0))
    return result


def test_values_arrive_in_the_compute_dtype_and_are_rounded_once() -> None:
    x = torch.linspace(-1, 1, 7).bfloat16()
    seen = []

    def thirds(inputs, base):
        seen.append((inputs[0].dtype, base.dtype))
        return (inputs[0] - base) / 3

    assert torch.equal(run(thirds, x, x * 0), (x.float() / 3).bfloat16())
    run(thirds, x, x * 0, compute=torch.float64)
    assert seen == [(torch.float32,) * 2, (torch.float64,) * 2]


def test_inputs_are_copies() -> None:
    x, base = torch.ones(4), torch.ones(4)
    run(lambda inputs, base: inputs[0].mul_(2).add_(base.mul_(3)), x, base, out=torch.float32)
    assert x.tolist() == base.tolist() == [1.0] * 4


def test_triton_leaves_it_to_torch() -> None:
    triton_ops = pytest.importorskip("mergecore_kernels.triton_ops", reason="triton is not installed")
    x, result = torch.ones(4), torch.empty(4)
    triton_ops.combine(TileFunction(lambda inputs, base: inputs[0] * 2), Tile(0, [x], None, torch.float32), result,
                       Workspace("cpu", 0))  # fmt: skip
    assert result.tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inputs, base: 5, r"^expected a tensor of shape \[4\], found 5$"),
        (
            lambda inputs, base: inputs[0][:3],
            r"^expected a floating point tensor of shape \[4\] on cpu, found one of shape \[3\], torch.float32, on cpu",
        ),
        (lambda inputs, base: inputs[0].int(), "found one of shape .4., torch.int32, on cpu$"),
        (lambda inputs, base: inputs[0].to("meta"), "found one of shape .4., torch.float32, on meta$"),
    ],
)
def test_results_that_are_none(function, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(function, torch.ones(4))
