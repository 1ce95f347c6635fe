"""Where tensors lie in a frame, and in which parts they are moved."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.plan.plan import Input, OutputTensor
from mergecore.stream.job import Job
from mergecore.stream.layout import ALIGNMENT, Layout, layout_of, layout_of_factors, layout_of_tile, parts, span_bytes
from mergecore_kernels.operations import Gram

FLOATS = [Dtype.F8_E4M3, Dtype.BF16, Dtype.F32, Dtype.F64]


def tensor_of(rows: int, columns: int, dtypes: list[Dtype], adapted: bool) -> OutputTensor:
    """Inputs of these dtypes; the first one with an adapter, if `adapted`."""
    refs = [TensorRef(f"{i}", 0, dtype, (rows, columns)) for i, dtype in enumerate(dtypes)]
    update = LowRank(TensorRef("up", 0, Dtype.F32, (rows, 2)), TensorRef("down", 0, Dtype.F32, (2, columns)), 1.0)
    inputs = tuple(Input(ref, "t", i, update if adapted and i == 0 else None) for i, ref in enumerate(refs))
    return OutputTensor(
        name="t", shape=(rows, columns), dtype=Dtype.BF16, inputs=inputs, base=None, base_index=None, method="linear",
        params=None, double=False, measured=False, shard=0, offset_bytes=0,
    )  # fmt: skip


tensors = st.builds(
    tensor_of, st.integers(0, 9), st.integers(1, 9), st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4),
    st.booleans(),
)  # fmt: skip


def places(layout: Layout) -> list[tuple[int, int]]:
    """(begin, end) of everything in the frame."""
    moved = [(piece.at, piece.end) for piece in (*layout.reads, *layout.writes)]
    held = [(at, at + 4 * span.n) for span in layout.spans for at in span.updated if span.n]
    return sorted(moved + held)


@given(st.lists(tensors, min_size=1, max_size=5))
def test_nothing_overlaps_and_the_size_is_known_before(found: list[OutputTensor]) -> None:
    layout = layout_of([Job(tensor, 0, tensor.n) for tensor in found])
    taken = places(layout)
    assert all(at % ALIGNMENT == 0 for at, _ in taken)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))
    assert all(end <= layout.n_bytes for _, end in taken)
    assert layout.n_bytes == sum(span_bytes(tensor, tensor.n) for tensor in found)
    assert layout.read_bytes == sum(tensor.input_bytes for tensor in found)


@given(st.lists(tensors, min_size=1, max_size=5), st.integers(1, 4))
def test_parts_hold_every_byte_once(found: list[OutputTensor], blocks: int) -> None:
    size = blocks * ALIGNMENT
    pieces = layout_of([Job(tensor, 0, tensor.n) for tensor in found]).reads
    cut = parts(pieces, size)
    assert all(part[-1].end - part[0].at <= size for part in cut)
    again = [piece for part in cut for piece in part]
    assert all(piece.n_bytes and piece.offset_bytes % piece.tensor.dtype.size == 0 for piece in again)
    want = [(piece.tensor, piece.offset_bytes + i, piece.at + i) for piece in pieces for i in range(piece.n_bytes)]
    assert want == [
        (piece.tensor, piece.offset_bytes + i, piece.at + i) for piece in again for i in range(piece.n_bytes)
    ]


def test_many_small_tensors_are_one_part() -> None:
    layout = layout_of([Job(tensor_of(1, 64, [Dtype.BF16], False), 0, 64) for _ in range(100)])
    assert len(parts(layout.reads, 1 << 20)) == len(parts(layout.writes, 1 << 20)) == 1


def test_a_tile_is_read_and_written_where_it_lies() -> None:
    tensor = tensor_of(10, 10, [Dtype.F32, Dtype.BF16], True)
    layout = layout_of_tile(Job(tensor, 0, 100), 40, 60)
    assert [(piece.offset_bytes, piece.n_bytes) for piece in layout.reads] == [(160, 80), (80, 40)]
    assert [(piece.offset_bytes, piece.n_bytes) for piece in layout.writes] == [(80, 40)]


def test_factors_alone() -> None:
    layout = layout_of_factors(Job(tensor_of(10, 10, [Dtype.F32], True), 0, 100))
    assert [piece.tensor.n for piece in layout.reads if isinstance(piece.tensor, TensorRef)] == [20, 20]
    assert not layout.writes


def test_a_question_writes_nothing() -> None:
    assert not layout_of([Job(tensor_of(10, 10, [Dtype.F32], False), 0, 100, Gram())]).writes
