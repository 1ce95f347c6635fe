"""Histograms of magnitudes are those of the torch twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import MAGNITUDE_LOW_BITS, MagnitudeCounts
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def both(jobs):
    """The counts by the kernel and by the twin, of each job."""
    workspace = Workspace("cpu", 0)
    return triton_ops.measure_batch(jobs, workspace), torch_ops.measure_batch(jobs, workspace)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_both_halves_of_the_bits(fine_tunes, special_values, guarded, cut, dtype, offset):
    base, models = fine_tunes(5003, [dtype] * 4)
    models[0] = special_values(models[0], range(0, 5003, 700))
    tiles = cut([guarded(x, offset) for x in models], guarded(base, offset))
    ((first,), want) = both([(MagnitudeCounts((None,) * 3), tiles)])
    assert [first] == want
    most = [max(counts, key=counts.get) for counts in first]
    ((rest,), want) = both([(MagnitudeCounts((None, most[1], most[2])), tiles)])
    assert [rest] == want
    assert [sum(counts.values()) for counts in rest] == [5003, first[1][most[1]], first[2][most[2]]]


def test_bits_of_zero_and_of_infinity(special_values):
    base = torch.zeros(100)
    x = special_values(torch.zeros(100), range(0, 60, 10))
    x[70:80] = 1e-42
    infinite = 0x7F800000 >> MAGNITUDE_LOW_BITS
    ((zeros, infinities),), want = both([(MagnitudeCounts((0, infinite)), [Tile(0, [x, x], base, F32)])])
    assert [[zeros, infinities]] == want
    assert infinities == {0: 3}
    # All but NaN, two Inf, the largest number and a subnormal that is too large.
    assert zeros == {0: 85, torch.tensor(1e-42).view(torch.int32).item(): 10}


def test_a_batch_of_several_kinds_and_lengths(fine_tunes, cut):
    jobs = []
    for n, dtypes in ((1, [F32] * 2), (2048, [BF16] * 3), (CHUNK + 17, [BF16] * 3), (77, [F64] * 2)):
        base, models = fine_tunes(n, dtypes)
        jobs.append((MagnitudeCounts((None,) * len(models)), cut(models, base)))
    jobs.append((MagnitudeCounts((None, 5)), []))
    got, want = both(jobs)
    assert got == want


@settings(max_examples=20)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.none() | st.integers(0, 0x7F800000 >> 15))
def test_any_values(values, first_bits):
    x = torch.tensor(values)
    got, want = both([(MagnitudeCounts((first_bits,)), [Tile(CHUNK, [x], torch.zeros_like(x), F32)])])
    assert got == want
