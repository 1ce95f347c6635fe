"""The selection of the elements whose deltas vary most over the models."""

import numpy as np
import pytest
import torch

from mergecore_kernels.operations import Key, LargestVariances
from mergecore_kernels.torch_ops import CHUNK, Workspace, measure
from mergecore_kernels.torch_ops.variances import select, selected, squared_deviations

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEY = Key.of("select", 3, "model.norm.weight", 0)


def deltas_of(base, models, compute=F32):
    return [x.to(compute) - base.to(compute) for x in models]


def kept_by(selection, deltas, workspace):
    """For each delta bool [N]: what the selection keeps of it that isn't zero."""
    chosen = [delta.clone() for delta in deltas]
    for at in range(0, len(deltas[0]), CHUNK):
        select([delta[at : at + CHUNK] for delta in chosen], selection, at, workspace)
    return [delta != 0 for delta in chosen]


@pytest.mark.parametrize("compute", [F32, F64], ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 7])
def test_squared_deviations_are_variances(workspace, fine_tunes, compute, m):
    base, models = fine_tunes(5000, (compute,) * (m + 1))
    deltas = deltas_of(base, models, compute)
    exact = torch.stack(deltas).to(F64)
    want = exact.var(0, correction=0) * m
    # A deviation takes differences, the mean, M sums and a quotient; its square and M sums follow.
    bound = torch.finfo(compute).eps * (2 * m + 6) * (exact**2).sum(0)
    assert ((squared_deviations(deltas, workspace).to(F64) - want).abs() <= bound).all()


@pytest.mark.parametrize("m", [1, 2, 3, 5, 6, 7])
def test_nothing_varies_where_all_deltas_are_equal(workspace, fine_tunes, m):
    """The rounded sum of three equal numbers, divided by three, need not be that number."""
    _, (delta,) = fine_tunes(5000, (F32, F32))
    assert not squared_deviations([delta] * m, workspace).any()


@pytest.mark.parametrize("dtypes", [(BF16,) * 4, (F32,) * 4, (F64, BF16, F32, F64)], ids=["bf16", "f32", "f64"])
@pytest.mark.parametrize("share", [0.1, 0.75, 1e-9])
def test_exactly_the_largest_are_selected(workspace, cut, fine_tunes, oracle_hash, dtypes, share):
    n = 2 * CHUNK + 1000
    base, models = fine_tunes(n, dtypes)
    for x in models:
        x[100:9000] = base[100:9000].to(x.dtype)
    compute = F64 if F64 in dtypes else F32
    deltas = deltas_of(base, models, compute)
    kept = kept_by(measure(LargestVariances(share, KEY), cut(models, base, 2), workspace), deltas, workspace)
    magnitude = squared_deviations(deltas, workspace).to(F32).numpy()
    k = int(np.float32(np.count_nonzero(magnitude)) * np.float32(share))
    order = np.lexsort((oracle_hash(KEY, np.arange(n)), -magnitude))
    want = torch.zeros(n, dtype=torch.bool)
    want[torch.from_numpy(order[:k].copy())] = True
    for found, delta in zip(kept, deltas, strict=True):
        assert torch.equal(found, want & (delta != 0))


@pytest.mark.parametrize("budget", [0, 64 << 20])
def test_tilings_and_memory_give_the_same_selection(cut, fine_tunes, budget):
    base, models = fine_tunes(6 * CHUNK + 123, (BF16,) * 4)
    spec, small = LargestVariances(0.3, KEY), Workspace("cpu", budget)
    found = [measure(spec, cut(models, base, chunks), small) for chunks in (1, 3, 7)]
    assert found[0] == found[1] == found[2]
    assert found[0] == measure(spec, cut(models, base, 7), Workspace("cpu", budget, use_numpy=False))


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("n", [0, 10])
def test_where_nothing_varies_nothing_is_selected(workspace, cut, models, n):
    selection = measure(LargestVariances(0.5, KEY), cut([torch.ones(n)] * models, torch.zeros(n)), workspace)
    deltas = [torch.ones(n) for _ in range(models)]
    select(deltas, selection, 0, workspace)
    assert not torch.stack(deltas).any()


def test_everything_may_be_selected(workspace, cut):
    base, models = torch.zeros(50), [torch.ones(50), torch.full((50,), 2.0)]
    assert measure(LargestVariances(1.0, KEY), cut(models, base), workspace) is None


def test_nan_and_inf_are_selected_first(workspace, cut, fine_tunes):
    base, models = fine_tunes(1000, (F32,) * 3)
    models[0][3], models[1][900] = float("nan"), float("inf")
    deltas = deltas_of(base, models)
    select(deltas, measure(LargestVariances(0.002, KEY), cut(models, base), workspace), 0, workspace)
    assert torch.stack(deltas).ne(0).any(0).nonzero().flatten().tolist() == [3, 900]


@pytest.mark.parametrize(
    ("varying", "share", "want"), [(10, 0.55, 5), (10, 0.0, 0), (10, -1.0, 0), (0, 0.5, 0), (10, 2.0, 10), (7, 1.0, 7)]
)
def test_numbers_selected(varying, share, want):
    assert selected(varying, share) == want


def test_the_product_is_truncated_as_float32():
    assert selected(100, 0.29) == 29  # 28.999999999999996 in float64
    assert selected((1 << 24) + 1, 1.0) == 1 << 24
