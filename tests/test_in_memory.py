"""Merges in memory: the bits of a merge of files, and what is said of arguments that don't fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergecore
from mergecore import ConfigError, MergeError, PlanError, in_memory, merge, merge_state_dicts, merge_tensors, methods
from mergecore.methods import Scope

ROWS, COLUMNS = 700, 301  # several chunks and a rest


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, llama) -> Path:
    """The folder of a base and two fine-tunes in bfloat16, with one tensor of several chunks."""
    generator = torch.Generator().manual_seed(5)
    root = tmp_path_factory.mktemp("family")
    base: dict[str, Tensor] = llama(1, dtype=torch.bfloat16)
    base["model.embed_tokens.weight"] = (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).bfloat16()
    for name in ("base", "a", "b"):
        (root / name).mkdir()
        noise = 0.0 if name == "base" else 0.0005
        tensors = {
            key: (x.float() + noise * torch.randn(x.shape, generator=generator)).bfloat16() for key, x in base.items()
        }
        save_file(tensors, root / name / "model.safetensors")
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def example(method: str) -> tuple[list[str], dict[str, Any]]:
    """The models beside the base that a method's example is for, and its parameters by their names in a config."""
    found = methods.get(method)
    by_field = {field.alias or name: name for name, field in found.params.model_fields.items()}
    values = {p.name: getattr(found.example, by_field[p.name]) for p in found.parameters}
    given = {name: value for name, value in values.items() if by_field[name] in found.example.model_fields_set}
    most = found.models[1]
    n = 2 if most is None else most - (found.base == "required" and found.base_counts)
    return ["a", "b"][:n], {name: v[:n] if isinstance(v, tuple) else v for name, v in given.items()}


def bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: x.view(torch.int16).flatten().tolist() for name, x in tensors.items()}


@pytest.mark.parametrize("method", methods.names())
def test_the_bits_of_a_merge_of_files(method: str, family: Path, tmp_path: Path) -> None:
    names, values = example(method)
    found = methods.get(method)
    scopes = {p.name: p.scope for p in found.parameters}
    own = {name: value for name, value in values.items() if scopes[name] is not Scope.SHARED}
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [
            {"model": str(family / model), "parameters": {k: v[i] for k, v in own.items() if v[i] is not None}}
            for i, model in enumerate(names)
        ],
        "parameters": {name: value for name, value in values.items() if name not in own},
    }
    if found.base == "required":
        config["base_model"] = str(family / "base")
    merge(config, tmp_path / "out", workers=0, seed=3)
    want = load_file(tmp_path / "out" / "model.safetensors")
    states = {name: load_file(family / name / "model.safetensors") for name in ("base", "a", "b")}
    before = bits(states["a"])
    got = merge_state_dicts(
        method,
        [states[name] for name in names],
        states["base"] if found.base == "required" else None,
        seed=3,
        **values,
    )
    assert list(got) == list(states["a"])
    assert bits(got) == bits(want)
    assert bits(states["a"]) == before
    assert not {x.data_ptr() for x in got.values()} & {x.data_ptr() for s in states.values() for x in s.values()}


@pytest.mark.parametrize("method", ["ties", "della", "slerp"])
def test_the_size_of_tiles_changes_no_bit(method: str, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, values = example(method)
    base, *models = (load_file(family / n / "model.safetensors")["model.embed_tokens.weight"] for n in ("base", *names))
    if methods.get(method).base != "required":
        base = None
    large = merge_tensors(method, models, base, **values)
    monkeypatch.setattr(in_memory.run, "_CPU_TILE", in_memory.run.CHUNK)
    assert torch.equal(large, merge_tensors(method, models, base, **values))


def tensors(*seeds: int, shape: tuple[int, ...] = (5, 7)) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def test_one_value_is_for_all_and_a_sequence_for_each() -> None:
    a, b = tensors(1, 2)
    assert torch.equal(merge_tensors("linear", [a, b], weight=1, normalize=False), a + b)
    both = merge_tensors("linear", [a, b], weight=torch.tensor([1.0, 2.0]), normalize="no")
    assert torch.equal(both, a + 2 * b)


def test_the_base_may_be_one_of_the_tensors() -> None:
    base, a, b = tensors(0, 1, 2)
    apart = merge_tensors("task_arithmetic", [a, b], base, weight=[0.5, 0.25], lambda_=2)
    among = merge_tensors("task_arithmetic", [a, base, b], base, weight=[0.5, 0.25], **{"lambda": 2})
    assert torch.equal(apart, among)
    assert torch.allclose(apart, base + 2 * (0.5 * (a - base) + 0.25 * (b - base)))


def test_the_base_alone_is_copied() -> None:
    (base,) = tensors(0)
    merged = merge_tensors("ties", [], base, weight=1)
    assert torch.equal(merged, base)
    assert merged.data_ptr() != base.data_ptr()


def test_name_and_seed_decide_what_is_random() -> None:
    base, a = tensors(0, 1, shape=(50, 50))
    one, again, other_seed, other_name = (
        merge_tensors("dare_linear", [a], base, weight=1, density=0.5, **options)
        for options in ({}, {"seed": 0}, {"seed": 1}, {"name": "other"})
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other_seed)
    assert not torch.equal(one, other_name)


def test_element_types() -> None:
    a, b = tensors(1, 2)
    mean = merge_tensors("linear", [a.bfloat16(), b.half()], weight=1)
    assert mean.dtype == torch.float32
    assert merge_tensors("linear", [a, b], weight=1, out_dtype="bfloat16").dtype == torch.bfloat16
    double = merge_tensors("linear", [a, b], weight=1, dtype=torch.float64)
    assert torch.equal(double, 0.5 * a.double() + 0.5 * b.double())
    half = merge_tensors("linear", [a, b], weight=1, dtype="torch.float16", out_dtype=torch.float32)
    assert half.dtype == torch.float32


def test_tensors_that_are_not_contiguous_or_are_parameters() -> None:
    a, b = tensors(1, 2, shape=(6, 4))
    merged = merge_tensors("linear", [a.t(), torch.nn.Parameter(b.t())], weight=1)
    assert torch.equal(merged, merge_tensors("linear", [a, b], weight=1).t())
    assert not merged.requires_grad


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    a, b = tensors(1, 2, shape=shape)
    assert torch.equal(merge_tensors("slerp", [a, b], a, t=0), a)


def test_tensors_that_are_not_floating_point_are_copied() -> None:
    (a,) = tensors(1)
    ids = torch.arange(5)
    merged = merge_state_dicts("linear", [{"w": a, "ids": ids}, {"ids": ids.clone(), "w": a}], weight=[1, 3])
    assert list(merged) == ["w", "ids"]
    assert torch.equal(merged["ids"], ids)
    assert merged["ids"].data_ptr() != ids.data_ptr()


A, B = tensors(1, 2)


@pytest.mark.parametrize(
    ("method", "models", "base", "values", "message"),
    [
        ("tise", [A], None, {}, r"^method: `tise` is not a merge method \(hint: did you mean `ties`\?\)$"),
        ("ties", [A, B], None, {"weight": 1}, "^base: `ties` needs a base$"),
        (
            "linear", [A], B, {"weight": 1},
            r"^base: `linear` takes no base \(hint: put it among the others, if it is to be merged\)$",
        ),
        (
            "passthrough", [A, B], None, {}, r"^`passthrough` takes 1, found 2: tensors\[0\], tensors\[1\]$",
        ),
        ("linear", [], None, {"weight": 1}, "^`linear` takes at least 1, found 0: $"),
        (
            "linear", [A, B], None, {"wieght": 1},
            r"^wieght: `wieght` is not a parameter of `linear` \(hint: did you mean `weight`\?\)\n"
            r"weight: `weight` is missing, and has no default$",
        ),
        (
            "linear", [A, B], None, {"weight": 1, "zzz": 1},
            r"^zzz: `zzz` is not a parameter of `linear` \(hint: its parameters are: weight, normalize\)$",
        ),
        (
            "linear", [A, B], None, {"weight": [1, 2, 3]},
            r"^weight: expected 2 values, one for each of tensors\[0\], tensors\[1\], found 3$",
        ),
        (
            "ties", [A, B], A, {"weight": [1, 2]},
            r"^weight: expected 1 values, one for each of tensors\[1\], found 2$",
        ),
        ("linear", [A, B], None, {"weight": [1, "x"]}, "^weight: expected a number, found 'x'$"),
        ("linear", [A, B], None, {"weight": {}}, "^weight: expected a single value, found a mapping$"),
        ("linear", [A, B], None, {"weight": 1, "normalize": [1]}, "^normalize: expected a single value, found a list$"),
        ("linear", [A, B], None, {"weight": 1, "dtype": "int64"}, "^dtype: `int64` is not a floating point type$"),
        (
            "linear", [A, B], None, {"weight": 1, "out_dtype": torch.int8},
            "^out_dtype: `int8` is not a floating point type$",
        ),
        (
            "linear", [A, B[:4]], None, {"weight": 1},
            r"^tensor: the tensors have different shapes: \[5, 7\] in tensors\[0\], \[4, 7\] in tensors\[1\]$",
        ),
        (
            "linear", [A, B.int()], None, {"weight": 1},
            r"^tensor: the tensors are not all floating point, so they can't be merged: torch.float32 in tensors\[0\], "
            r"torch.int32 in tensors\[1\]$",
        ),
        (
            "linear", [A.int(), B.int()], None, {"weight": 1},
            r"^tensor: is not floating point, so it can only be copied, but tensors\[1\] differs from tensors\[0\]$",
        ),
        ("linear", [A, A.cfloat()], None, {"weight": 1}, "^tensor: tensors of the type torch.complex64 can.t be"),
        (
            "linear", [A, B], None, {"weight": [1, -1]}, "^tensor: the weights 1, -1 add up to 0",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(method: str, models: list[Tensor], base, values: dict[str, Any], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        merge_tensors(method, models, base, **values)


def test_devices_that_differ() -> None:
    with pytest.raises(PlanError, match=r"different devices: cpu in tensors\[0\], meta in tensors\[1\]"):
        merge_tensors("linear", [A, B.to("meta")], weight=1)


def test_state_dicts_whose_names_differ() -> None:
    one = {"v": A, **{f"w{i}": A for i in range(5)}}
    with pytest.raises(PlanError) as caught:
        merge_state_dicts("linear", [one, {"v": A, "x": A}, {"v": A}], weight=1)
    assert str(caught.value).splitlines() == [
        "models[1]: lacks `w0`, `w1`, `w2`, ... that models[0] has (5 in all)",
        "models[1]: has `x`, which models[0] lacks",
        "models[2]: lacks `w0`, `w1`, `w2`, ... that models[0] has (5 in all)",
    ]


def test_all_tensors_that_do_not_fit_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        merge_state_dicts("linear", [{"v": A, "w": A, "x": A}, {"v": B[:1], "w": B, "x": B[1:]}], weight=1)
    assert [problem.where for problem in caught.value.problems] == ["v", "x"]


def test_a_module_is_no_mapping() -> None:
    with pytest.raises(PlanError, match=r"models\[0\]: expected a mapping .*, found Linear .hint: take its state_dict"):
        merge_state_dicts("linear", [torch.nn.Linear(2, 2)], weight=1)  # type: ignore[list-item]


def test_modules_by_their_state_dicts() -> None:
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    one.load_state_dict(merge_state_dicts("linear", [one.state_dict(), other.state_dict()], weight=[0, 1]))
    assert torch.equal(one.weight, other.weight)


def test_importing_mergecore_loads_no_torch() -> None:
    code = "import sys, mergecore as m; print('torch' in sys.modules); m.merge_tensors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\nTrue\n"


def test_attributes_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'mergecore' has no attribute 'mrege'"):
        mergecore.mrege  # noqa: B018


def test_the_error_for_parameters_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        merge_tensors("linear", [A])
