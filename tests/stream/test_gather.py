"""Gathered rows: those of a naive loop over rows, whatever stretch is read, and few calls for many rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mergecore.checkpoint.gathered_rows import MEAN, GatheredRows, RowMap
from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.stream import gather
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype

Rows = list[list[tuple[int, int]]]
"""(part, row) of all that each row is the mean of."""


def row_map(rows: Rows) -> RowMap:
    entries = [entry for row in rows for entry in row]
    parts, numbers = (np.array([entry[i] for entry in entries]) for i in (0, 1))
    return RowMap.of(np.array([len(row) for row in rows]), parts.astype(np.int16), numbers.astype(np.int32))


def save(folder: Path, *parts: Tensor) -> list[TensorRef]:
    refs = []
    for i, part in enumerate(parts):
        save_file({"x": part, "y": torch.ones(1)}, folder / f"{i}.safetensors")
        refs.append(read_header(folder / f"{i}.safetensors")["x"])
    return refs


def read(tensor: GatheredRows, start: int, stop: int) -> Tensor:
    into = torch.full((stop - start,), 77).to(torch_dtype(tensor.dtype))
    with Files() as files:
        files.read_elements(tensor, start, raw_bytes(into))
    return into


def naive(parts: list[Tensor], rows: Rows, dtype: torch.dtype) -> Tensor:
    """[R, C] in the type that means are computed in."""
    found = torch.zeros(len(rows), parts[0].shape[1], dtype=dtype)
    for i, row in enumerate(rows):
        picked = [parts[part][number].to(dtype) for part, number in row if part != MEAN]
        for one in picked:
            found[i] = one if one is picked[0] else found[i] + one
        if len(picked) > 1:
            found[i] = found[i] / len(picked)
    named = [i for i, row in enumerate(rows) if (MEAN, 0) not in row]
    for i in set(range(len(rows))) - set(named):
        found[i] = found[named].double().mean(dim=0).to(dtype)
    return found


@st.composite
def matrices(draw) -> tuple[list[int], int, Rows]:
    """Rows of each part, columns, and the map."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    entries = [st.integers(0, size - 1).map(lambda row, part=part: (part, row)) for part, size in enumerate(sizes)]
    row = st.lists(st.one_of(*entries), max_size=3, unique_by=lambda entry: entry[0]).map(sorted)
    rows = draw(st.lists(row, min_size=1, max_size=60))
    run = draw(st.integers(0, sizes[0]))
    named = [*([(0, i)] for i in range(run)), *rows]
    return sizes, draw(st.integers(1, 9)), [*named, *([(MEAN, 0)] for _ in range(draw(st.integers(0, 2))))]


@settings(max_examples=60)
@given(
    matrix=matrices(),
    dtypes=st.lists(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]), min_size=3),
    data=st.data(),
)
def test_any_stretch_of_any_map(tmp_path_factory, matrix, dtypes, data) -> None:
    sizes, columns, rows = matrix
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, columns, generator=generator).to(d) for n, d in zip(sizes, dtypes, strict=False)]
    parts[0][0] = -0.0
    tensor = GatheredRows.of(save(tmp_path_factory.mktemp("parts"), *parts), row_map(rows))
    expected = naive(parts, rows, torch_dtype(tensor.dtype)).view(-1)
    start = data.draw(st.integers(0, tensor.n - 1))
    stop = data.draw(st.integers(start + 1, tensor.n))
    for one in (tensor, tensor.within(start, stop)):
        found = read(one, start, stop)
        if rows[-1] == [(MEAN, 0)]:
            torch.testing.assert_close(found, expected[start:stop], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found.view(torch.uint8), expected[start:stop].view(torch.uint8))


@settings(max_examples=100)
@given(order=st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_rows_that_are_wanted_several_times(tmp_path_factory, order: list[int]) -> None:
    part = torch.arange(24.0).view(8, 3)
    tensor = GatheredRows.of(save(tmp_path_factory.mktemp("part"), part), row_map([[(0, i)] for i in order]))
    assert torch.equal(read(tensor, 0, tensor.n).view(-1, 3), part[order])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_that_are_copied_keep_their_type_and_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.arange(256 * 8, dtype=torch.int32).to(torch.uint8).view(-1, 8 * dtype.itemsize)
    part = bits.view(dtype)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0)).tolist()
    tensor = GatheredRows.of(save(tmp_path, part), row_map([[(0, i)] for i in order] + [[]]))
    assert torch_dtype(tensor.dtype) is dtype
    found = read(tensor, 0, tensor.n).view(torch.uint8).view(-1, bits.shape[1])
    assert torch.equal(found[:-1], bits[order])
    assert not found[-1].any()


def test_the_type_that_rows_are_read_as(tmp_path: Path) -> None:
    half, single, double = (
        save(tmp_path, torch.ones(2, 2, dtype=d))[0] for d in (torch.bfloat16, torch.float32, torch.float64)
    )
    copied, mean = row_map([[(0, 1)], [(1, 0)]]), row_map([[(0, 1), (1, 0)]])
    types = {
        (*(part.dtype.value for part in parts), name): GatheredRows.of(parts, rows).dtype.value
        for parts in ([half, half], [half, single], [half, double])
        for name, rows in (("copied", copied), ("mean", mean))
    }
    assert types == {
        ("BF16", "BF16", "copied"): "BF16", ("BF16", "BF16", "mean"): "F32",
        ("BF16", "F32", "copied"): "F32", ("BF16", "F32", "mean"): "F32",
        ("BF16", "F64", "copied"): "F64", ("BF16", "F64", "mean"): "F64",
    }  # fmt: skip
    assert GatheredRows.of([half, single], copied).stored_dtype.value == "F32"
    assert GatheredRows.of([half, half], mean).stored_dtype.value == "BF16"
    assert GatheredRows.of([half], row_map([[(0, 0)], [(MEAN, 0)]])).dtype.value == "F32"


def counted(tensor: GatheredRows, start: int, stop: int, parts: list[Tensor]) -> list[tuple[int, int]]:
    """(first element, elements) of each read."""
    reads: list[tuple[int, int]] = []

    def read_elements(ref: TensorRef, first: int, into: memoryview) -> None:
        data = parts[tensor.parts.index(ref)].view(-1)[first : first + len(into) // ref.dtype.size]
        into[:] = raw_bytes(data.contiguous())
        reads.append((first, len(data)))

    size = tensor.dtype.size
    gather.RowReader(read_elements).read(tensor, start, memoryview(bytearray((stop - start) * size)))
    return reads


def test_a_run_is_read_with_one_call_and_without_its_neighbours(tmp_path: Path) -> None:
    part = torch.randn(100, 10)
    tensor = GatheredRows.of(save(tmp_path, part), row_map([[(0, i)] for i in range(20, 80)]))
    assert counted(tensor, 15, 333, [part]) == [(215, 318)]


def test_rows_near_each_other_are_read_together(tmp_path: Path) -> None:
    part = torch.randn(5000, 16)  # rows of 64 bytes: up to 16 between two that are read together
    order = [30, 10, 20, 4000, 11, 4010]
    tensor = GatheredRows.of(save(tmp_path, part), row_map([[(0, i)] for i in order]))
    assert sorted(counted(tensor, 0, tensor.n, [part])) == [(160, 21 * 16), (64000, 11 * 16)]


def test_a_scattered_matrix_is_never_held_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gather, "BLOCK_BYTES", 1 << 12)
    part = torch.randn(4000, 16)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0)).tolist()
    tensor = GatheredRows.of(save(tmp_path, part), row_map([[(0, i)] for i in order]))
    reads = counted(tensor, 0, tensor.n, [part])
    assert max(n for _, n in reads) * 4 <= 1 << 12
    assert len(reads) < 100


def test_the_mean_of_all_rows_is_computed_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gather, "_MEAN_ELEMENTS", 64)
    part = torch.randn(50, 10)
    rows: Rows = [[(0, i)] for i in range(50)] + [[(MEAN, 0)], [], [(MEAN, 0)]]
    tensor = GatheredRows.of(save(tmp_path, part), row_map(rows))
    expected = torch.cat([part, torch.zeros(1, 10)]).double().mean(dim=0).float()
    found = read(tensor, 0, tensor.n).view(-1, 10)
    assert torch.equal(found[50], found[52])
    torch.testing.assert_close(found[50], expected)
    assert len(counted(tensor, 500, 530, [part])) == len(range(0, 53, 6))


def test_a_map_is_named_by_its_content() -> None:
    one, same, other = row_map([[(0, 1)], []]), row_map([[(0, 1)], []]), row_map([[], [(0, 1)]])
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert repr(one) == f"RowMap(digest={one.digest!r}, n=2, first=0)"
    assert one.within(0, 1) != one


def test_parts_can_be_left_out() -> None:
    rows = row_map([[(0, 1), (2, 5)], [(2, 6)], [(0, 3)], [(MEAN, 0)]])
    assert rows.of_parts([2]) == row_map([[(0, 5)], [(0, 6)], [], [(MEAN, 0)]])
    assert rows.of_parts([2, 0]).parts.tolist() == [1, 0, 0, 1, MEAN]


def test_the_start_of_a_matrix() -> None:
    assert row_map([[(1, 0)], [(1, 1)]]).is_start_of(1)
    for rows in (
        [[(0, 0)], [(1, 1)]],
        [[(1, 1)], [(1, 0)]],
        [[(1, 0)], []],
        [[(1, 0), (2, 0)], []],
        [[(1, 0)], [(MEAN, 0)]],
    ):
        assert not row_map(rows).is_start_of(1)
