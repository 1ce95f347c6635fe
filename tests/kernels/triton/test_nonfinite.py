"""Counting NaN and Inf: the kernel counts as its torch twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.triton_ops.launch_table import BLOCK

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, *FLOAT8]


@st.composite
def tensors(draw):
    n = draw(st.sampled_from([0, 1, 17, BLOCK, BLOCK + 1]) | st.integers(0, 3 * BLOCK))
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn(n + 1, generator=torch.Generator().manual_seed(n)).to(dtype)[draw(st.integers(0, 1)) :]
    for special in (float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).max):
        for place in draw(st.lists(st.integers(0, n), max_size=5)):
            x[place : place + draw(st.integers(0, 100))] = special
    return x


@settings(max_examples=40)
@given(st.lists(tensors(), max_size=4))
def test_counts_of_the_twin(batch):
    assert triton_ops.count_nonfinite_batch(batch) == [torch_ops.count_nonfinite(x) for x in batch]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_16_bit_number(dtype):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    assert triton_ops.count_nonfinite(every) == torch_ops.count_nonfinite(every) > 0
