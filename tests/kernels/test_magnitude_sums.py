"""Sums of magnitudes before and after a mask."""

from math import fsum

import numpy as np
import pytest
import torch

from mergecore_kernels.operations import Drop, Key, KthMagnitudes, MagnitudeSums
from mergecore_kernels.torch_ops import CHUNK, Workspace, measure
from mergecore_kernels.torch_ops.reduction_tree import ROWS

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
KEYS = tuple(Key.of("drop", 9, "lm_head.weight", model) for model in range(3))
MASKS = (Drop.keeping(0.3, KEYS[0]), None, Drop.keeping(0.9, KEYS[2]))


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 21])
@pytest.mark.parametrize("dtypes", [(BF16,) * 4, (F32,) * 4, (F64,) * 4, (F32, BF16, torch.float16, F32)])
def test_close_to_exact(workspace, cut, fine_tunes, oracle_hash, n, dtypes):
    base, models = fine_tunes(n, dtypes)
    got = measure(MagnitudeSums(MASKS), cut(models, base, 2), workspace)
    compute = F64 if F64 in dtypes else F32
    for (before, after), x, mask in zip(got, models, MASKS, strict=True):
        magnitude = (x.to(compute) - base.to(compute)).abs().double()
        kept = oracle_hash(mask.key, np.arange(n)) < mask.threshold if mask else np.ones(n, bool)
        for total, values in ((before, magnitude), (after, magnitude[torch.from_numpy(kept)])):
            exact = fsum(values.tolist())
            # ROWS sums in the compute dtype; the float64 tree adds nothing that counts.
            assert abs(total - exact) <= 1.01 * ROWS * torch.finfo(compute).eps / 2 * exact
    assert got[1][0] == got[1][1]


def test_of_a_trim(workspace, cut, fine_tunes):
    base, models = fine_tunes(3 * CHUNK, (BF16, BF16), 0.0002)
    k = CHUNK
    masks = measure(KthMagnitudes((k,), KEYS[:1]), cut(models, base), workspace)
    ((before, after),) = measure(MagnitudeSums(masks), cut(models, base), workspace)
    magnitude = (models[0].float() - base.float()).abs().double()
    assert before == pytest.approx(fsum(magnitude.tolist()), rel=ROWS * 2.0**-24)
    assert after == pytest.approx(fsum(magnitude.sort(descending=True).values[:k].tolist()), rel=ROWS * 2.0**-24)


def test_tilings_and_backends_give_the_same_bits_and_inputs_stay(cut, fine_tunes):
    base, models = fine_tunes(18 * CHUNK + 3, (BF16, BF16, F32, torch.float16))
    before = [x.clone() for x in (base, *models)]
    results = [
        measure(MagnitudeSums(MASKS), cut(models, base, chunks), Workspace("cpu", 0, use_numpy=use_numpy))
        for chunks, use_numpy in ((1, True), (5, True), (19, True), (4, False))
    ]
    assert all(result == results[0] for result in results)
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


def test_zero_deltas(workspace, cut, fine_tunes):
    base, _ = fine_tunes(100, (BF16,))
    assert measure(MagnitudeSums(MASKS), cut([base] * 3, base), workspace) == [(0.0, 0.0)] * 3
