"""The header parser, against safetensors itself and against files that are broken."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.checkpoint.safetensors_file import header_bytes, read_header
from mergecore.errors import CheckpointError

TORCH = {Dtype.F32: torch.float32, Dtype.BF16: torch.bfloat16, Dtype.F16: torch.float16, Dtype.I64: torch.int64}
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(list(TORCH)), shapes),
    max_size=6,
)


@given(tensors)
def test_reads_what_safetensors_writes(wanted: dict[str, tuple[Dtype, tuple[int, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        values = {name: torch.ones(shape, dtype=TORCH[dtype]) for name, (dtype, shape) in wanted.items()}
        save_file(values, path, metadata={"format": "pt"})
        found = read_header(path)
        content = path.read_bytes()
    assert {name: (ref.dtype, ref.shape) for name, ref in found.items()} == wanted
    for name, ref in found.items():
        stored = content[ref.offset_bytes : ref.offset_bytes + ref.n_bytes]
        assert stored == values[name].flatten().view(torch.uint8).numpy().tobytes()


@given(tensors)
def test_safetensors_reads_what_we_write(wanted: dict[str, tuple[Dtype, tuple[int, ...]]]) -> None:
    ordered = sorted(((name, *rest) for name, rest in wanted.items()), key=lambda entry: -entry[1].size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        header = header_bytes(ordered)
        assert len(header) % 64 == 0
        n_data = sum(torch.Size(shape).numel() * dtype.size for _, dtype, shape in ordered)
        path.write_bytes(header + bytes(n_data))
        assert set(read_header(path)) == set(wanted)
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {n: s for n, (_, s) in wanted.items()}


def whole_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({"a": torch.ones(10), "b": torch.ones(3)}, path)
    return path


def test_truncated_file(tmp_path: Path) -> None:
    path = whole_file(tmp_path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"truncated: {size} bytes expected, {size - 5} found.*download it again"):
        read_header(path)


def test_trailing_bytes(tmp_path: Path) -> None:
    path = whole_file(tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="longer than its header says"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header should take 0 bytes, but the file has only 0"),
        (b"\xff" * 8 + b"{}", "its header should take 18446744073709551615 bytes, but the file has only 10"),
        ((2).to_bytes(8, "little") + b"{x", "its header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not a JSON object"),
    ],
)
def test_broken_header(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as caught:
        read_header(path)
    assert message in str(caught.value)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2]}, "its entry for `a` lacks dtype, shape or data_offsets"),
        (ENTRY | {"shape": [-2]}, "its entry for `a` has a shape or offset that is no natural number"),
        (ENTRY | {"shape": [2.0]}, "its entry for `a` has a shape or offset that is no natural number"),
        (ENTRY | {"shape": [3]}, "`a` should take 12 bytes but has 8"),
        (ENTRY | {"data_offsets": [4, 12]}, "its tensors overlap or leave a gap"),
        (ENTRY | {"dtype": "F8_E8M0"}, "`a` has the dtype F8_E8M0; supported are F64, F32"),
        (7, "its entry for `a` lacks dtype, shape or data_offsets"),
    ],
)
def test_broken_entry(tmp_path: Path, entry: object, message: str) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_tensors_or_a_message(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            read_header(path)


def test_promotion() -> None:
    assert promote([Dtype.BF16, Dtype.BF16]) is Dtype.BF16
    assert promote([Dtype.BF16, Dtype.F16]) is Dtype.F32
    assert promote([Dtype.F32, Dtype.F16]) is Dtype.F32
    assert promote([Dtype.BF16, Dtype.F64]) is Dtype.F64


@pytest.mark.parametrize("float8", [Dtype.F8_E4M3, Dtype.F8_E5M2])
def test_float8_is_contained_in_all_others(float8: Dtype) -> None:
    for other in (Dtype.BF16, Dtype.F16, Dtype.F32, Dtype.F64):
        assert promote([float8, other]) is promote([other, float8]) is other
    assert promote([float8]) is promote([Dtype.F8_E4M3, Dtype.F8_E5M2]) is Dtype.BF16
    assert promote([float8, Dtype.F16, Dtype.BF16]) is Dtype.F32
