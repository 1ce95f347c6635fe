"""Joined tensors: the bytes of their parts, whatever stretch is read, and no call that isn't needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mergecore import CheckpointError
from mergecore.checkpoint.expert_layout import stack, unstack
from mergecore.checkpoint.gathered_rows import Stored
from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.stream import reader
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype

E, P, R, C = 3, 2, 4, 5


def save(file: Path, tensors: dict[str, Tensor]) -> dict[str, TensorRef]:
    save_file(tensors, file)
    return read_header(file)


def read(tensor: Stored, start: int, stop: int) -> Tensor:
    into = torch.full((stop - start,), 77).to(torch_dtype(tensor.dtype))
    with Files() as files:
        files.read_elements(tensor, start, raw_bytes(into))
    return into


def experts(dtypes: list[torch.dtype]) -> list[list[Tensor]]:
    """[E][P] matrices [R, C], of these types in turn."""
    generator = torch.Generator().manual_seed(1)
    one_by_one = iter(range(E * P))
    return [
        [torch.randn(R, C, generator=generator).to(dtypes[next(one_by_one) % len(dtypes)]) for _ in range(P)]
        for _ in range(E)
    ]


def refs_of(folder: Path, matrices: list[list[Tensor]]) -> list[list[TensorRef]]:
    """Each expert in a file of its own, as if it came from another checkpoint."""
    found = []
    for i, of_one in enumerate(matrices):
        refs = save(folder / f"{i}.safetensors", {f"{j}": matrix for j, matrix in enumerate(of_one)})
        found.append([refs[f"{j}"] for j in range(P)])
    return found


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[JoinedTensors, Tensor]:
    """A joined tensor, and what is in it."""
    matrices = experts([torch.bfloat16])
    whole = torch.stack([torch.cat(of_one) for of_one in matrices])
    return stack(refs_of(tmp_path_factory.mktemp("experts"), matrices)), whole


@given(st.data())
def test_any_stretch(stacked: tuple[JoinedTensors, Tensor], data: st.DataObject) -> None:
    tensor, whole = stacked
    assert tensor.shape == whole.shape
    start = data.draw(st.integers(0, tensor.n))
    stop = data.draw(st.integers(start, tensor.n))
    assert torch.equal(read(tensor, start, stop), whole.view(-1)[start:stop])


@given(st.data())
def test_what_a_worker_needs_is_enough_and_not_more(stacked: tuple[JoinedTensors, Tensor], data: st.DataObject) -> None:
    tensor, whole = stacked
    start = data.draw(st.integers(0, tensor.n - 1))
    stop = data.draw(st.integers(start + 1, tensor.n))
    known = tensor.within(start, stop)
    assert torch.equal(read(known, start, stop), whole.view(-1)[start:stop])
    assert [part for part, _, _ in tensor.runs(start, stop)] == list(known.parts)
    middle = data.draw(st.integers(start, stop - 1))
    assert torch.equal(read(known.within(middle, stop), middle, stop), whole.view(-1)[middle:stop])


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.float64, torch.float16], torch.float64),
        ([torch.float8_e4m3fn, torch.bfloat16], torch.bfloat16),
    ],
)
def test_parts_of_several_types_keep_their_numbers(
    dtypes: list[torch.dtype], common: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_CONVERTED_ELEMENTS", 3)
    matrices = experts(dtypes)
    tensor = stack(refs_of(tmp_path, matrices))
    whole = torch.stack([torch.cat([matrix.to(common) for matrix in of_one]) for of_one in matrices]).view(-1)
    assert torch_dtype(tensor.dtype) == common
    for start, stop in ((0, tensor.n), (7, 38), (R * C - 1, R * C + 1)):
        assert torch.equal(read(tensor, start, stop), whole[start:stop])


@settings(max_examples=30)
@given(n_experts=st.integers(0, 4), parts=st.integers(1, 3), rows=st.integers(0, 3), columns=st.integers(0, 3))
def test_unstacked_and_stacked_again(
    n_experts: int, parts: int, rows: int, columns: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = torch.randn(n_experts, parts * rows, columns).half()
    ref = save(tmp_path_factory.mktemp("x") / "x.safetensors", {"first": torch.ones(3), "x": whole})["x"]
    matrices = unstack(ref, parts)
    assert len(matrices) == n_experts
    for expert, of_one in zip(whole, matrices, strict=True):
        assert [matrix.shape for matrix in of_one] == [(rows, columns)] * parts
        assert torch.equal(torch.cat([read(matrix, 0, matrix.n) for matrix in of_one]), expert.reshape(-1))
    if whole.numel():
        again = stack(matrices)
        assert again.shape == whole.shape
        assert torch.equal(read(again, 0, again.n), whole.view(-1))


def test_a_strided_tensor_is_unstacked(tmp_path: Path) -> None:
    """As a pickled one may be, whose axes were moved before it was saved."""
    stored = torch.randn(C, E, P * R)  # [C, E, rows]
    ref = save(tmp_path / "x.safetensors", {"x": stored})["x"]
    moved = TensorRef(ref.file, ref.offset_bytes, ref.dtype, (E, P * R, C), strides=(P * R, 1, E * P * R))
    whole = stored.permute(1, 2, 0)
    for expert, of_one in zip(whole, unstack(moved, P), strict=True):
        for want, matrix in zip(expert.chunk(P), of_one, strict=True):
            assert torch.equal(read(matrix, 0, matrix.n), want.reshape(-1))


def test_only_what_is_needed_is_read(stacked, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, _ = stacked
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(Files, "read", lambda self, path, offset, into: calls.append((path, len(into))))
    read(tensor, R * C - 2, 2 * R * C)
    first, second = tensor.parts[:2]
    assert calls == [(first.file, 4), (second.file, 2 * R * C)]


def test_a_part_that_became_shorter(stacked) -> None:
    tensor, _ = stacked
    last = tensor.parts[-1]
    beyond = TensorRef(last.file, last.offset_bytes + 1, last.dtype, last.shape)
    joined = JoinedTensors.of([*tensor.parts[:-1], beyond], tensor.shape)
    with pytest.raises(CheckpointError, match="2.safetensors: became shorter while it was read"):
        read(joined, 0, joined.n)
