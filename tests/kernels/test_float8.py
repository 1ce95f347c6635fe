"""Float8 inputs: every byte of both formats is loaded exactly, alone and beside other types."""

import math

import pytest
import torch

from mergecore_kernels.operations import Copy, WeightedSum
from mergecore_kernels.torch_ops import Tile, combine, count_nonfinite
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.float8 import FLOAT8

E4M3FN, E5M2 = FLOAT8
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
each_format = pytest.mark.parametrize("dtype", FLOAT8, ids=str)


def by_definition(dtype):
    """float64 [256] the value of each byte, from sign, exponent and mantissa."""
    bits, bias = (3, 7) if dtype == E4M3FN else (2, 15)
    values = []
    for byte in range(256):
        exponent, mantissa = divmod(byte & 0x7F, 1 << bits)
        value = math.ldexp(mantissa + (1 << bits) * (exponent > 0), max(exponent, 1) - bias - bits)
        if dtype == E4M3FN and byte & 0x7F == 0x7F:
            value = math.nan
        if dtype == E5M2 and exponent == 31:
            value = math.nan if mantissa else math.inf
        values.append(math.copysign(value, -1.0 if byte & 0x80 else 1.0))
    return torch.tensor(values, dtype=F64)


def every(dtype):
    return torch.arange(256, dtype=torch.uint8).view(dtype)


def equal(got, want):
    """The same numbers, with the same signs of zeros; of a NaN, that it is one."""
    assert torch.equal(got.isnan(), want.isnan())
    finite = ~want.isnan()
    assert torch.equal(got[finite].double(), want[finite])
    assert torch.equal(torch.signbit(got[finite]), torch.signbit(want[finite]))


@each_format
@pytest.mark.parametrize("compute", [F32, F64], ids=str)
def test_every_byte_is_loaded_exactly(dtype, compute):
    want = by_definition(dtype)
    equal(load(every(dtype), torch.empty(256, dtype=compute)), want)
    equal(load_delta(every(dtype), torch.full((256,), 0.5, dtype=compute), torch.empty(256, dtype=compute)), want - 0.5)


@each_format
@pytest.mark.parametrize("out_dtype", [BF16, F16, F32, F64], ids=str)
def test_every_byte_is_a_number_of_all_other_types(workspace, dtype, out_dtype):
    """So a float8 model may be written as bfloat16, or merged with one of float16, without another type."""
    out = torch.empty(256, dtype=out_dtype)
    combine(Copy(), Tile(0, [every(dtype)], None, F32), out, workspace)
    equal(out, by_definition(dtype))


@each_format
def test_finite_numbers_are_loaded_without_the_others(dtype):
    """NaN is put in by a step of its own, which is left out where there is none."""
    finite = by_definition(dtype).isfinite()
    x = every(dtype)[finite]
    equal(load(x, torch.empty(len(x))), by_definition(dtype)[finite])


@pytest.mark.parametrize(("dtype", "count"), [(E4M3FN, 2), (E5M2, 8)], ids=str)
def test_nonfinite_are_counted(dtype, count):
    """e4m3fn has one NaN of each sign and no Inf."""
    for times in (1, 300):
        assert count_nonfinite(every(dtype).repeat(times)) == count * times
    nonfinite = ~by_definition(dtype).isfinite()
    assert count_nonfinite(every(dtype)[~nonfinite]) == 0
    for one in every(dtype)[nonfinite]:
        assert count_nonfinite(torch.cat([torch.ones(50, dtype=dtype), one.view(1)])) == 1


def test_both_formats_and_others_in_a_sum(workspace):
    generator = torch.Generator().manual_seed(0)
    base, *inputs = (torch.randn(5000, generator=generator).to(dtype) for dtype in (E5M2, *FLOAT8, BF16, F16, F32))
    weights = (0.5, -0.25, 0.125, 1.0, 2.0)  # powers of two, so that only the sums are rounded
    out = torch.empty(5000)
    combine(WeightedSum(weights), Tile(0, inputs, base, F32), out, workspace)
    terms = torch.stack([w * (x.double() - base.double()) for w, x in zip(weights, inputs, strict=True)])
    bound = torch.finfo(F32).eps * (len(terms) + 1) * (terms.abs().sum(dim=0) + base.double().abs())
    assert ((out.double() - terms.sum(dim=0) - base.double()).abs() <= bound).all()
