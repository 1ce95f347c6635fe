"""The kernels of arcee_fusion's importance give the bits of their torch twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import ImportanceQuantiles, TakeImportant
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.importance import LANES
from mergecore_kernels.torch_ops.importance import divergences as twin
from mergecore_kernels.triton_ops.importance import _divergences
from mergecore_kernels.triton_ops.launch_table import BLOCK

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
QUARTERS = (0.25, 0.5, 0.75)
AMPLE = 1 << 20
"""Bytes: room for the importances, so that they are computed once."""


class Stream:
    """Tiles that aren't a list: they are drawn anew for each pass."""

    def __init__(self, tiles):
        self.tiles = tiles

    def __iter__(self):
        return iter(self.tiles)


def divergences(tile, columns):
    (found,) = _divergences([(columns, tile)], Workspace("cpu", 0))
    return found


def check_quantiles(jobs, budget=AMPLE):
    got = triton_ops.measure_batch(jobs, Workspace("cpu", budget))
    for (quantiles, rows), (spec, tiles) in zip(got, jobs, strict=True):
        want, want_rows = torch_ops.measure(spec, tiles, Workspace("cpu", AMPLE))
        assert quantiles == want
        assert np.array_equal(rows, want_rows, equal_nan=True)
        assert rows.dtype == np.float32
    return got


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 511, 512, 513, 1000, 1024, 2500])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F32, F32), (BF16, F32)], ids=str)
def test_divergences(guarded, same_bits, fine_tunes, columns, dtypes):
    base, (x,) = fine_tunes(3 * columns, dtypes, 0.003)
    tile = Tile(0, [guarded(x)], guarded(base), F32)
    same_bits(divergences(tile, columns), twin(tile, columns, Workspace("cpu", 0)))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 3e3, 1e30])
def test_divergences_of_any_size(same_bits, fine_tunes, scale):
    base, (x,) = fine_tunes(4 * 600, (F32, F32), 0.01)
    tile = Tile(0, [x * scale], base * scale, F32)
    found = divergences(tile, 600)
    assert found.isfinite().all()
    same_bits(found, twin(tile, 600, Workspace("cpu", 0)))


def test_nonfinite_rows(same_bits, fine_tunes, special_values):
    base, (x,) = fine_tunes(13 * 20, (F32, F32))
    x, base = special_values(x, range(0, 120, 20)), special_values(base, range(120, 240, 20))
    x[119] = base[119] = float("nan")
    tile = Tile(0, [x], base, F32)
    found = divergences(tile, 20)
    assert found.isnan().any()
    assert found.isfinite().any()
    same_bits(found, twin(tile, 20, Workspace("cpu", 0)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (1, 5), (4, 2), (4, 70), (2, LANES + 5)])
@pytest.mark.parametrize("budget", [0, AMPLE], ids=["computed anew", "kept"])
def test_quantiles(cut, fine_tunes, rows, columns, budget):
    base, (x,) = fine_tunes(rows * columns, (BF16, BF16))
    spec = ImportanceQuantiles((0.0, *QUARTERS, 1.0), columns, rows * columns)
    check_quantiles([(spec, cut([x], base)), (spec, Stream(cut([x], base)))], budget)


@pytest.mark.parametrize(("rows", "columns"), [(3, 300), (1, 900)])
def test_tiles(fine_tunes, rows, columns):
    base, (x,) = fine_tunes(rows * columns, (BF16, F16))
    spec = ImportanceQuantiles(QUARTERS, columns, rows * columns)
    got = check_quantiles([(spec, kind(cut_at(x, base, size))) for kind, size in ((list, 250), (Stream, 400))])
    assert got[0][0] == got[1][0]
    assert np.array_equal(got[0][1], got[1][1])


def cut_at(x, base, size):
    """Tiles of so many elements, which are no chunks: rows lie across them."""
    return [Tile(at, [x[at:][:size]], base[at:][:size], F32) for at in range(0, len(x), size)]


def test_quantiles_with_nan(cut, fine_tunes, special_values):
    base, (x,) = fine_tunes(80, (F32, F32))
    spec = ImportanceQuantiles((0.0, *QUARTERS, 0.99, 1.0), 10, 80)
    check_quantiles([(spec, cut([special_values(x, range(0, 60, 10))], base))])
    check_quantiles([(spec, cut([torch.full_like(x, float("nan"))], base))])


@pytest.mark.parametrize("columns", [1, 3, 64, 1001, 5000])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(("dtypes", "out"), [((BF16, BF16), BF16), ((F16, F32), F32)], ids=str)
def test_choice(guarded, same_bits, fine_tunes, special_values, columns, offset, dtypes, out):
    n, start = BLOCK + 33, CHUNK
    base, (x,) = fine_tunes(n, dtypes, 0.003)
    x = special_values(x, range(0, 60, 10))
    rows = np.random.default_rng(0).random(-(-(start + n) // columns), np.float32)
    tile = Tile(start, [guarded(x, offset)], guarded(base, offset), F32)
    got, want = guarded(torch.zeros(n, dtype=out), offset), torch.zeros(n, dtype=out)
    spec = TakeImportant(0.001, rows, columns)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
    same_bits(got, want)
    assert 0 < (want == base).sum() < n


def test_float64_is_done_by_the_twin(cut, same_bits, fine_tunes):
    base, (x,) = fine_tunes(300, (F64, BF16))
    ((_, rows),) = check_quantiles([(ImportanceQuantiles(QUARTERS, 30, 300), cut([x], base))])
    got, want = torch.zeros(300, dtype=F64), torch.zeros(300, dtype=F64)
    spec, tile = TakeImportant(1e-9, rows, 30), Tile(0, [x], base, F64)
    triton_ops.combine(spec, tile, got, Workspace("cpu", 0))
    torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
    same_bits(got, want)


@settings(max_examples=12)
@given(data=st.data())
def test_any_batch(same_bits, cut, fine_tunes, data):
    measures, combines = [], []
    for seed in range(data.draw(st.integers(0, 2))):
        rows, columns = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 2, 3, 8, 77, 600]))
        dtypes = data.draw(st.lists(st.sampled_from([BF16, F16, F32]), min_size=2, max_size=2))
        base, (x,) = fine_tunes(rows * columns, dtypes, data.draw(st.sampled_from([0.0, 0.01, 1.0, 50.0])), seed)
        if rows and data.draw(st.booleans()):
            x[data.draw(st.integers(0, rows * columns - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        kind = data.draw(st.sampled_from([list, Stream]))
        measures.append((ImportanceQuantiles(QUARTERS, columns, rows * columns), kind(cut([x], base))))
        divergences = np.full(rows, data.draw(st.sampled_from([0.0, 0.5, np.nan])), np.float32)
        spec = TakeImportant(data.draw(st.sampled_from([0.0, 0.002])), divergences, columns)
        combines.append((spec, Tile(0, [x], base, F32), torch.zeros(rows * columns, dtype=dtypes[0])))
    check_quantiles(measures, data.draw(st.sampled_from([0, AMPLE])))
    triton_ops.combine_batch(combines, Workspace("cpu", 0))
    for spec, tile, out in combines:
        want = torch.zeros_like(out)
        torch_ops.combine(spec, tile, want, Workspace("cpu", 0))
        same_bits(out, want)
