"""The selection of the largest variances is that of the torch twin, whatever is kept between the passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Key, LargestVariances
from mergecore_kernels.torch_ops import CHUNK, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEY = Key.of("select", 2, "lm_head.weight", 0)
AMPLE = 1 << 20
"""Bytes: room for the squared deviations, so that they are computed once."""


class Stream:
    """Tiles that aren't a list: they are drawn anew for each pass."""

    def __init__(self, tiles):
        self.tiles = tiles

    def __iter__(self):
        return iter(self.tiles)


def check(jobs, budget=AMPLE):
    got = triton_ops.measure_batch(jobs, Workspace("cpu", budget))
    assert got == [torch_ops.measure(spec, tiles, Workspace("cpu", AMPLE)) for spec, tiles in jobs]
    return got


@pytest.mark.parametrize("n", [0, 1, 15, 17, 2047, 2049, 5000])
@pytest.mark.parametrize("budget", [0, AMPLE], ids=["computed anew", "kept"])
def test_every_length(cut, fine_tunes, n, budget):
    base, models = fine_tunes(n, (BF16,) * 4)
    check([(LargestVariances(0.4, KEY), cut(models, base))], budget)


@pytest.mark.parametrize("budget", [0, AMPLE], ids=["computed anew", "some kept"])
def test_tiles(cut, fine_tunes, budget):
    base, models = fine_tunes(CHUNK + 3000, (BF16, F32, F16, BF16))
    spec = LargestVariances(0.01, KEY)
    got = check(
        [(spec, cut(models, base, 1)), (spec, Stream(cut(models, base, 1))), (spec, cut(models, base, 2))], budget
    )
    assert got[0] == got[1] == got[2]


@pytest.mark.parametrize("share", [-1.0, 0.0, 1e-9, 0.5, 1.0, 2.0])
def test_every_share(cut, fine_tunes, share):
    base, models = fine_tunes(1000, (F32,) * 3)
    same, _ = fine_tunes(1000, (F32,))
    spec = LargestVariances(share, KEY)
    check([(spec, cut(models, base)), (spec, cut([same, same], base)), (spec, cut(models[:1], base))])


def test_nonfinite(cut, fine_tunes, special_values):
    base, models = fine_tunes(1000, (F32,) * 4)
    models[1] = special_values(models[1], range(0, 600, 100))
    check([(LargestVariances(share, KEY), cut(models, base)) for share in (0.002, 0.004, 0.3)])


def test_float64_is_done_by_the_twin(cut, fine_tunes):
    base, models = fine_tunes(3000, (F64, BF16, F64, F32))
    check([(LargestVariances(0.4, KEY), cut(models, base))])


@settings(max_examples=10)
@given(data=st.data())
def test_any_batch(cut, fine_tunes, data):
    jobs = []
    for _ in range(data.draw(st.integers(0, 3))):
        m, n = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3000))
        dtypes = data.draw(st.lists(st.sampled_from([BF16, F16, F32, *FLOAT8]), min_size=m + 1, max_size=m + 1))
        base, models = fine_tunes(n, dtypes, seed=m)
        offset = data.draw(st.sampled_from([0, 0, 1])) if n else 0
        tiles = cut([x[offset:] for x in models], base[offset:])
        jobs.append(
            (LargestVariances(data.draw(st.floats(0, 1)), KEY), data.draw(st.sampled_from([list, Stream]))(tiles))
        )
    check(jobs, data.draw(st.sampled_from([0, AMPLE])))
