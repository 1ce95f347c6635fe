"""The tests' own ground: the interpreter, with the patch of conftest.py, casts as a GPU does."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


def test_tests_run_in_the_interpreter():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_is_rounded_to_nearest_even(dtype, same_bits):
    step = torch.finfo(dtype).eps
    x = torch.tensor([1.0 + step / 2, 1.0 + 1.5 * step, 1.0 + 0.51 * step, -1.0 - 0.75 * step, 0.0, -0.0, 1e-40, 3e38])
    out = torch.empty(8, dtype=dtype)
    _cast_kernel[(1,)](x, out, N=8)
    same_bits(out, x.to(dtype))
    assert out[0] == 1.0
    assert out[1] == 1.0 + 2 * step


def test_every_bfloat16_and_its_neighbourhood(same_bits):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    widened = torch.empty(1 << 16)
    _cast_kernel[(1,)](every, widened, N=1 << 16)
    same_bits(widened, every.to(torch.float32))
    for low_half in (1, 0x7FFF, 0x8000, 0x8001):
        x = (widened.view(torch.int32) | low_half).view(torch.float32)
        out = torch.empty(1 << 16, dtype=torch.bfloat16)
        _cast_kernel[(1,)](x, out, N=1 << 16)
        same_bits(out, x.to(torch.bfloat16))
