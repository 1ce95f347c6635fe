"""Whatever bytes a file has, reading it ends in what it holds or in a MergeError, soon and without much memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_inputs.breaking import LLAMA, SHAPES, make_whole, write_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mergecore.checkpoint.adapter import with_adapter
from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.config import load
from mergecore.errors import MergeError
from mergecore.output.config_json import config_json
from mergecore.plan.build import build

SHARED_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000, max_examples=150, derandomize=True
)
NUMBERS = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30, -(2**63)]) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.sampled_from(["F32", "BF16", "LORA", "\ud800"])
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
ENTRY = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F4"]) | ANYTHING,
        "shape": st.lists(NUMBERS, max_size=4) | ANYTHING,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | ANYTHING,
        "more": ANYTHING,
    },
)
NAMES = st.sampled_from(["w", "__metadata__", "model.norm.weight", "a.b.c", "\ud800", "", "\x1b[2J"]) | st.text(
    max_size=5
)
WHOLE = save({name: torch.ones(shape) for name, shape in SHAPES.items()})


def found_or_refused(read: Callable[[], Any]) -> Any:
    """What was read; None if it was refused, with a message for the user."""
    try:
        return read()
    except MergeError as error:
        problems = error.problems
    assert problems
    assert all(problem.what for problem in problems)
    return None


def check(path: Path) -> None:
    """The header of a file is refused, or all that it says lies in the file."""
    found: dict[str, TensorRef] = found_or_refused(lambda: read_header(path)) or {}
    for tensor in found.values():
        assert 8 <= tensor.offset_bytes <= tensor.offset_bytes + tensor.n_bytes <= path.stat().st_size


@SHARED_FOLDER
@given(header=ANYTHING | st.dictionaries(NAMES, ENTRY, max_size=3), n_bytes=st.integers(0, 64))
def test_any_header(tmp_path: Path, header: Any, n_bytes: int) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "any.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_bytes))
    check(tmp_path / "any.safetensors")


@SHARED_FOLDER
@given(start=st.integers(0, 2**64 - 1) | st.integers(0, 80), rest=st.binary(max_size=80))
def test_any_bytes(tmp_path: Path, start: int, rest: bytes) -> None:
    (tmp_path / "any.safetensors").write_bytes(struct.pack("<Q", start) + rest)
    check(tmp_path / "any.safetensors")


@SHARED_FOLDER
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), length=st.integers(0, len(WHOLE)))
def test_a_whole_file_with_another_byte_or_an_early_end(tmp_path: Path, place: int, byte: int, length: int) -> None:
    changed = bytearray(WHOLE)
    changed[place] = byte
    (tmp_path / "any.safetensors").write_bytes(changed)
    check(tmp_path / "any.safetensors")
    (tmp_path / "any.safetensors").write_bytes(WHOLE[:length])
    found = found_or_refused(lambda: read_header(tmp_path / "any.safetensors"))
    assert (found is not None) == (length == len(WHOLE))


@SHARED_FOLDER
@given(
    index=ANYTHING
    | st.fixed_dictionaries(
        {"weight_map": st.dictionaries(NAMES, st.sampled_from(["one.safetensors", "", "..", "/", "x\0"]) | ANYTHING)}
    )
)
def test_any_index(tmp_path: Path, index: Any) -> None:
    (tmp_path / "one.safetensors").write_bytes(save({"w": torch.ones(1)}))
    write_json(tmp_path / "model.safetensors.index.json", index)
    found_or_refused(lambda: open_checkpoint(tmp_path))


@SHARED_FOLDER
@given(
    changes=st.dictionaries(
        st.sampled_from(
            [*LLAMA, "text_config", "quantization_config", "layer_types", "max_window_layers", "_class_name"]
        ),
        ANYTHING | st.lists(ANYTHING, min_size=1, max_size=1) | st.dictionaries(st.sampled_from([*LLAMA]), ANYTHING),
    )
)
def test_any_config_json(tmp_path: Path, changes: dict[str, Any]) -> None:
    if not (tmp_path / "a").exists():
        make_whole(tmp_path)
    (tmp_path / "a" / "config.json").write_text(json.dumps(LLAMA | changes))
    source = {"sources": [{"model": str(tmp_path / "a"), "layer_range": [0, 1]}]}
    config = load({"merge_method": "passthrough", "slices": [source, source], "chat_template": "chatml"})
    planned = found_or_refused(lambda: build(config))
    if planned is not None:
        json.dumps(config_json(planned), ensure_ascii=False).encode()


@SHARED_FOLDER
@given(
    changes=st.dictionaries(
        st.sampled_from(["peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "use_dora", "r"]),
        ANYTHING | st.dictionaries(st.text(alphabet="(a|.*+?)[]{2}\\$^q", max_size=12), ANYTHING, max_size=3),
    ),
    shapes=st.dictionaries(
        st.sampled_from(["lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_x", "weight", ""]),
        st.lists(st.sampled_from([0, 1, 2, 4]), max_size=4),
    ),
)
def test_any_adapter(tmp_path: Path, changes: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    if not (tmp_path / "a").exists():
        make_whole(tmp_path)
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 4} | changes)
    names = {f"base_model.model.model.layers.0.self_attn.q_proj.{end}": shape for end, shape in shapes.items()}
    tensors = {name: torch.ones(shape) for name, shape in names.items()}
    (tmp_path / "adapter_model.safetensors").write_bytes(save(tensors))
    model = open_checkpoint(tmp_path / "a")
    found_or_refused(lambda: with_adapter(model, tmp_path))


@pytest.mark.parametrize("pattern", ["(a|a)" * 9, "(a+)+", "a?" * 30 + "a" * 30, "(" * 99, "a{99999}", r"(.)\1"])
def test_patterns_that_could_take_for_ever_are_refused(tmp_path: Path, pattern: str) -> None:
    make_whole(tmp_path)
    write_json(tmp_path / "adapter_config.json", {"lora_alpha": 4, "alpha_pattern": {pattern: 2}})
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": torch.ones(2, 4), f"{name}B.weight": torch.ones(4, 2)}
    (tmp_path / "adapter_model.safetensors").write_bytes(save(factors))
    with pytest.raises(MergeError, match="is no pattern that can be understood here"):
        with_adapter(open_checkpoint(tmp_path / "a"), tmp_path)
