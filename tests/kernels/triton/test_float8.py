"""Float8 inputs: the kernels decode every byte of both formats as their torch twins do."""

import pytest
import torch

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Copy
from mergecore_kernels.torch_ops import Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8

WORKSPACE = Workspace("cpu", 0, use_numpy=False)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_byte_is_loaded_exactly(guarded, same_bits, dtype, offset, out_dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    tile = Tile(0, [guarded(every, offset)], None, torch.float32)
    got, want = guarded(torch.zeros(256, dtype=out_dtype)), torch.empty(256, dtype=out_dtype)
    triton_ops.combine(Copy(), tile, got, WORKSPACE)
    torch_ops.combine(Copy(), tile, want, WORKSPACE)
    same_bits(got, want)
    same_bits(want, every.to(out_dtype))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_nonfinite_are_counted(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    assert triton_ops.count_nonfinite(every) == torch_ops.count_nonfinite(every) > 0
