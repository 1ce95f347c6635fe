"""Merges of mixtures of experts in different layouts: the bytes are those of a merge in which all have one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_sharded
from safetensors.torch import load_file
from small_family import example_config, load_weights, same_bytes
from small_mixtures import (
    LARGE,
    MIXTRAL,
    N_EXPERTS,
    QWEN3,
    UNKNOWN,
    separate_experts,
    stacked_experts,
    write_mixture,
    write_mixtures,
)
from torch import Tensor

from mergecore import CheckpointError, PlanError, merge, methods, plan, verify
from mergecore.checkpoint.expert_layout import Layout
from mergecore.stream import budget, execute, writer

Family = dict[str, Path]


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    """mixtures(config, **sizes) -> the folders; they are written once."""
    written: dict[str, Family] = {}

    def make(config: dict[str, Any], **sizes: int) -> Family:
        key = f"{config} {sizes}"
        if key not in written:
            written[key] = write_mixtures(tmp_path_factory.mktemp("mixtures"), config, **sizes)
        return written[key]

    return make


def one_layout(family: Family, layout: Layout) -> Family:
    end = "/" if layout is Layout.STACKED else ""
    return {name: family[f"{name}{end}"] for name in ("base", "a", "b")}


def mixed(family: Family, layout: Layout, method: str) -> Family:
    """The model that decides has this layout: the base, or where there is none the first. The others have not."""
    other = next(one for one in Layout if one is not layout)
    decides = "base" if methods.get(method).space == "deltas" else "a"
    return one_layout(family, other) | {decides: one_layout(family, layout)[decides]}


def merged(config: dict[str, Any], out: Path, **options: Any) -> dict[str, Tensor]:
    merge(config, out, **{"seed": 3, "workers": 0} | options)
    return load_weights(out)


def linear(*models: Path, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": entries} | more


@pytest.mark.parametrize(
    ("method", "layout"), [("ties", Layout.SEPARATE), *((method, Layout.STACKED) for method in methods.names())]
)
def test_every_method_gives_the_bytes_of_one_layout(method: str, layout: Layout, mixtures, tmp_path: Path) -> None:
    family = mixtures(QWEN3 | {"num_hidden_layers": 1})
    want = merged(example_config(method, one_layout(family, layout)), tmp_path / "same")
    assert same_bytes(want, merged(example_config(method, mixed(family, layout, method)), tmp_path / "mixed"))
    assert any(name.endswith(".experts.down_proj") for name in want) == (layout is Layout.STACKED)


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL, UNKNOWN], ids=lambda config: config["model_type"])
@pytest.mark.parametrize(("first", "second"), [("a", "b/"), ("a/", "b")])
def test_the_first_model_decides(config: dict[str, Any], first: str, second: str, mixtures, tmp_path: Path) -> None:
    family = mixtures(config)
    made = plan(linear(family[first], family[second]))
    words = ("stacked", "separate") if second == "b/" else ("separate", "stacked")
    assert made.notes[-1] == (
        f"the experts of {family[second]} are {words[0]} on disk; they are merged and written {words[1]}, as "
        f"{family[first]} has them"
    )
    found = merged(linear(family[first], family[second]), tmp_path / "out")
    one, other = (load_weights(family[name]) for name in (first, first.replace("a", "b")))
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        mean = (one[name].double() + 2 * other[name].double()) / 3
        assert (tensor.double() - mean).abs().max() <= 2**-8 * mean.abs().max(), name


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL, UNKNOWN], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("layout", ["", "/"])
def test_where_all_agree_nothing_changes(config: dict[str, Any], layout: str, mixtures) -> None:
    family = mixtures(config)
    made = plan(linear(family[f"a{layout}"], family[f"b{layout}"]))
    assert not any("on disk" in note for note in made.notes)
    assert {tensor.name for tensor in made.tensors} == load_weights(family[f"a{layout}"]).keys()


def test_the_base_decides_wherever_it_is(mixtures) -> None:
    family = mixtures(MIXTRAL)
    config = linear(family["a"], family["base/"], family["b"], base_model=str(family["base/"]))
    made = plan(config)
    assert [note.split()[3] for note in made.notes] == [str(family["a"]), str(family["b"])]
    assert "model.layers.0.mlp.experts.gate_up_proj" in {tensor.name for tensor in made.tensors}


def test_layers_of_models_in_different_layouts(mixtures, tmp_path: Path) -> None:
    family = mixtures(MIXTRAL)
    slices = [{"sources": [{"model": str(family[n]), "layer_range": r}]} for n, r in (("a", [0, 1]), ("b/", [0, 2]))]
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    a, b = (load_weights(family[name]) for name in "ab")
    name = "block_sparse_moe.experts.2.w3.weight"
    assert torch.equal(found[f"model.layers.0.{name}"], a[f"model.layers.0.{name}"])
    assert torch.equal(found[f"model.layers.2.{name}"], b[f"model.layers.1.{name}"])
    assert torch.equal(
        found["model.layers.2.block_sparse_moe.gate.weight"], b["model.layers.1.block_sparse_moe.gate.weight"]
    )
    assert not any("mlp" in name for name in found)


def test_files_without_a_config(tmp_path: Path) -> None:
    for name, layout in (("a", separate_experts), ("b", lambda: stacked_experts(separate_experts()))):
        (tmp_path / name).mkdir()
        save_sharded(tmp_path / name, layout(), shards=1)
    files = [tmp_path / name / "model.safetensors" for name in "ab"]
    found = merged(linear(*files), tmp_path / "out")
    assert same_bytes(found, separate_experts())


def test_a_layer_with_too_few_experts(mixtures, tmp_path: Path) -> None:
    tensors = separate_experts(QWEN3)
    lacking = f"model.layers.1.mlp.experts.{N_EXPERTS - 2}.up_proj.weight"
    del tensors[lacking]
    broken = write_mixture(tmp_path / "broken", QWEN3, tensors)
    with pytest.raises(CheckpointError) as caught:
        plan(linear(mixtures(QWEN3)["a/"], broken))
    whole = "model.layers.1.mlp.experts.gate_up_proj"
    assert str(caught.value) == f"{broken}: lacks the tensor `{lacking}`, which `{whole}` would be stacked from"


def test_models_with_different_numbers_of_experts(mixtures, tmp_path: Path) -> None:
    tensors = {name: t for name, t in separate_experts(QWEN3).items() if ".experts.2." not in name}
    fewer = write_mixture(tmp_path / "fewer", QWEN3 | {"num_experts": 2}, tensors)
    stacked = mixtures(QWEN3)["a/"]
    with pytest.raises(PlanError, match=r"gate_up_proj` has different shapes: \[3, 8, 6\] in \S+, \[2, 8, 6\] in \S+"):
        plan(linear(stacked, fewer))
    with pytest.raises(PlanError, match="fewer: lacks the tensor `model.layers.0.mlp.experts.2.gate_proj.weight`"):
        plan(linear(fewer, stacked))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear"])
@pytest.mark.parametrize("layout", Layout)
def test_memory_and_job_sizes_change_no_bit(
    method: str, layout: Layout, mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = mixtures(QWEN3, **LARGE)
    want = merged(example_config(method, one_layout(family, layout)), tmp_path / "same")
    config = example_config(method, mixed(family, layout, method))
    least = budget.least_memory(plan(config), workers=1)
    assert same_bytes(want, merged(config, tmp_path / "little", memory=least))
    monkeypatch.setattr(execute, "SPAN", budget.CHUNK)
    assert same_bytes(want, merged(config, tmp_path / "spans", shard_size="500KB"))


def test_workers_change_no_bit(mixtures, tmp_path: Path) -> None:
    family = mixtures(QWEN3, **LARGE)
    config = linear(family["a/"], family["b"])
    assert same_bytes(merged(config, tmp_path / "here"), merged(config, tmp_path / "two", workers=2))


@pytest.mark.parametrize("first", ["a", "a/"])
def test_verified_by_merging_again(first: str, mixtures, tmp_path: Path) -> None:
    family = mixtures(MIXTRAL)
    out = tmp_path / "out"
    merged(linear(family[first], family["b/"], family["base"]), out)
    found = verify(out, recompute=1.0, workers=0)
    assert found.passed
    assert set(found.recomputed) == load_weights(out).keys()
    manifest = json.loads((out / "mergecore.json").read_text())
    files = {str(path) for name in (first, "b/", "base") for path in family[name].glob("*.safetensors")}
    assert manifest["inputs"].keys() == files


def test_interrupted_it_goes_on(mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = mixtures(QWEN3, **LARGE)
    config = linear(family["a/"], family["b"])
    want = merged(config, tmp_path / "whole")
    write_at, written = writer.write_at, []

    def fails_later(file: int, data: memoryview, offset_bytes: int) -> None:
        written.append(len(data))
        if len(written) > 20:
            raise KeyboardInterrupt
        write_at(file, data, offset_bytes)

    monkeypatch.setattr(execute, "SPAN", budget.CHUNK)
    monkeypatch.setattr(writer, "write_at", fails_later)
    with pytest.raises(KeyboardInterrupt):
        merged(config, tmp_path / "out")
    monkeypatch.setattr(writer, "write_at", write_at)
    result = merge(config, tmp_path / "out", workers=0, seed=3)
    assert result.report.kept_bytes
    assert same_bytes(want, load_file(tmp_path / "out" / "model.safetensors"))
