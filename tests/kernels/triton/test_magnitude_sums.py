"""The sums of magnitudes give the bits of their torch twin."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import HASH_RANGE, Drop, Key, MagnitudeSums, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEYS = [Key.of("drop", 9, "lm_head.weight", model) for model in range(9)]
DROPS = (Drop.keeping(0.3, KEYS[0]), None, Drop.keeping(0.9, KEYS[2]))
TIES = (Trim(0.0020, 1 << 31, KEYS[0]), Trim(0.001953125, 1 << 30, KEYS[1]), None)
BAND = (Trim(0.001, 1 << 31, KEYS[0], 0.00390625, 1 << 31), None, Trim(0.0, 5, KEYS[1], 0.004, -1))
MIXED = (Trim(inf, 0, KEYS[0]), DROPS[0], TIES[1])


def bits(results):
    """The float64 of all sums as integers; all NaN alike."""
    sums = torch.tensor(results, dtype=F64)
    return torch.where(sums.isnan(), -1, sums.view(torch.int64)).tolist()


def check(jobs):
    got = triton_ops.measure_batch(jobs, Workspace("cpu", 0))
    for (spec, tiles), sums in zip(jobs, got, strict=True):
        assert len(sums) == len(spec.masks)
        assert bits(sums) == bits(torch_ops.measure(spec, tiles, Workspace("cpu", 0)))


@pytest.mark.parametrize("n", [0, 1, 511, 2047, 2048, 2049, CHUNK - 1, CHUNK, CHUNK + 1])
def test_every_length(cut, fine_tunes, n):
    base, models = fine_tunes(n, (BF16,) * 3)
    check([(MagnitudeSums((DROPS[0], DROPS[2])), cut(models, base, 2))])


@pytest.mark.parametrize("masks", [TIES, BAND, MIXED, (None,) * 3], ids=["ties", "band", "mixed", "no masks"])
def test_every_kind_of_mask(cut, fine_tunes, masks):
    base, models = fine_tunes(5000, (F32, BF16, F16, F32))
    check([(MagnitudeSums(masks), cut(models, base))])


@pytest.mark.parametrize("m", [1, 2, 5, 8, 9])
def test_any_number_of_models(cut, fine_tunes, m):
    base, models = fine_tunes(5000, (BF16,) * (m + 1))
    check([(MagnitudeSums(tuple(Drop.keeping(0.4, key) for key in KEYS[:m])), cut(models, base))])


@pytest.mark.parametrize("offset", [1, 8])
def test_unaligned(cut, fine_tunes, offset):
    base, models = fine_tunes(5000, (BF16,) * 4)
    check([(MagnitudeSums(DROPS), cut([x[offset:] for x in models], base[offset:]))])


@pytest.mark.parametrize(("start", "n"), [((1 << 32) - CHUNK, CHUNK + 3000), ((1 << 34) + CHUNK, 3000)])
def test_far_into_a_tensor(fine_tunes, start, n):
    """The sums are those of the tile's elements. The first tile goes beyond 2^32, where keys change."""
    base, models = fine_tunes(n, (BF16,) * 4)
    check([(MagnitudeSums(DROPS), [Tile(start, models, base, F32)])])


def test_tilings_give_the_same_bits(cut, fine_tunes):
    base, models = fine_tunes(2 * CHUNK + 5, (BF16,) * 2)
    spec = MagnitudeSums(DROPS[:1])
    whole, tiled = triton_ops.measure_batch(
        [(spec, cut(models, base, 3)), (spec, cut(models, base, 1))], Workspace("cpu", 0)
    )
    assert whole == tiled == torch_ops.measure(spec, cut(models, base, 2), Workspace("cpu", 0))


def test_nonfinite(cut, fine_tunes, special_values):
    base, models = fine_tunes(3000, (F32,) * 4)
    models = [special_values(models[0], [5, 2500]), models[1], special_values(models[2], [7, 8, 9, 10])]
    check([(MagnitudeSums(masks), cut(models, base)) for masks in (DROPS, TIES, BAND)])


def test_float64_is_done_by_the_twin(cut, fine_tunes):
    base, models = fine_tunes(3000, (F64, BF16, F64, F32))
    check([(MagnitudeSums(DROPS), cut(models, base))])


dtypes = st.sampled_from([BF16, F16, F32, *FLOAT8])
masks = st.one_of(
    st.none(),
    st.builds(Drop, st.sampled_from([0, 1, 1 << 30, HASH_RANGE]), st.sampled_from(KEYS)),
    st.builds(Trim, st.sampled_from([0.0, 0.001953125, inf]), st.sampled_from([0, 1 << 31]), st.sampled_from(KEYS)),
)


@settings(max_examples=12)
@given(data=st.data())
def test_any_batch(cut, fine_tunes, data):
    jobs = []
    for _ in range(data.draw(st.integers(0, 3))):
        m = data.draw(st.integers(1, 4))
        n = data.draw(st.integers(0, 5000))
        kinds = data.draw(st.just([BF16] * (m + 1)) | st.lists(dtypes, min_size=m + 1, max_size=m + 1))
        base, models = fine_tunes(n, kinds, seed=m)
        spec = MagnitudeSums(tuple(data.draw(masks) for _ in range(m)))
        jobs.append((spec, cut(models, base, data.draw(st.integers(1, 2)))))
    check(jobs)
