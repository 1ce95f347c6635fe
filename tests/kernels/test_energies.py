"""Sums of squares of the selected deltas."""

import pytest
import torch

from mergecore_kernels.operations import Energies, Key, LargestVariances
from mergecore_kernels.torch_ops import CHUNK, measure

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SELECT = LargestVariances(0.3, Key.of("select", 1, "x", 0))
SIZES = [0, 1, CHUNK - 1, 2 * CHUNK + 17]


@pytest.mark.parametrize("dtypes", [(BF16,) * 4, (F32,) * 4, (F64,) * 4, (F32, BF16, F16, F32)], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_close_to_float64(workspace, cut, fine_tunes, dtypes, n):
    base, models = fine_tunes(n, dtypes)
    got = measure(Energies(None), cut(models, base), workspace)
    deltas = torch.stack([x.to(F64) for x in models]) - base.to(F64)
    # The difference and the square are rounded; a lane adds 32 squares.
    want = (deltas**2).sum(1).tolist()
    eps = torch.finfo(F64 if F64 in dtypes else F32).eps
    # Differences of 16-bit numbers are exact in float32 or rounded once, relative to the delta.
    assert got == pytest.approx(want, rel=40 * eps, abs=0)


def test_of_the_selected_elements(workspace, cut, fine_tunes):
    n = 2 * CHUNK + 77
    base, models = fine_tunes(n, (F32,) * 4)
    tiles = cut(models, base, 2)
    got = measure(Energies(measure(SELECT, tiles, workspace)), tiles, workspace)
    deltas = torch.stack([x - base for x in models]).to(F64)
    largest = deltas.var(0, correction=0).topk(int(n * 0.3)).indices
    assert got == pytest.approx((deltas[:, largest] ** 2).sum(1).tolist(), rel=1e-5)


@pytest.mark.parametrize("selected", [False, True])
def test_tilings_give_the_same_bits(workspace, cut, fine_tunes, selected):
    base, models = fine_tunes(5 * CHUNK + 1234, (BF16, BF16, F32, F16))
    selection = measure(SELECT, cut(models, base), workspace) if selected else None
    results = [measure(Energies(selection), cut(models, base, chunks), workspace) for chunks in (1, 2, 6)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_nonfinite_shows(workspace, cut, fine_tunes, special):
    base, models = fine_tunes(1000, (BF16,) * 4)
    models[1][500] = special
    finite = torch.tensor(measure(Energies(None), cut(models, base), workspace)).isfinite()
    assert finite.tolist() == [True, False, True]
