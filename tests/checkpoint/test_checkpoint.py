"""Model folders: whole ones, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mergecore.checkpoint.architecture import recognize
from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.errors import CheckpointError, MergeError, PlanError


def test_one_file_or_several_are_the_same(make_model) -> None:
    one, three = open_checkpoint(make_model("one")), open_checkpoint(make_model("three", shards=3))
    assert one.tensors.keys() == three.tensors.keys()
    assert {Path(ref.file).name for ref in three.tensors.values()} == {
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    }


def fails(folder: Path, message: str, error: type[MergeError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        recognize(open_checkpoint(folder))
    assert message in str(caught.value)
    assert folder.name in str(caught.value)


def test_folder_without_config(make_model) -> None:
    folder = make_model("m")
    (folder / "config.json").unlink()
    fails(folder, "has no config.json, so it is not a whole model folder")


def test_config_that_is_no_json(make_model) -> None:
    folder = make_model("m")
    (folder / "config.json").write_text("{")
    fails(folder, "is not valid JSON")


def test_folder_without_weights(make_model) -> None:
    folder = make_model("m")
    (folder / "model.safetensors").unlink()
    fails(folder, "holds no weights: neither model.safetensors nor model.safetensors.index.json")


def test_pickled_weights(make_model) -> None:
    folder = make_model("m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fails(folder, "holds pickled weights (pytorch_model.bin), and only safetensors files are read")


def test_missing_shard(make_model) -> None:
    folder = make_model("m", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names")


def test_index_that_promises_too_much(make_model) -> None:
    folder = make_model("m", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(folder, "lacks the tensor `ghost`, which model.safetensors.index.json says it holds")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd"])
def test_index_that_leads_out_of_the_folder(make_model, name: str) -> None:
    folder = make_model("m", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    fails(folder, f"names the file {name!r}, which is not in the model folder")


def test_index_without_a_map(make_model) -> None:
    folder = make_model("m", shards=2)
    (folder / "model.safetensors.index.json").write_text("{}")
    fails(folder, "has no `weight_map`")


def test_unknown_architecture(make_model) -> None:
    fails(
        make_model("m", architectures=["BananaForCausalLM"]),
        "the architecture `BananaForCausalLM` is not supported yet (hint: supported are LLaMaForCausalLM",
        PlanError,
    )


@pytest.mark.parametrize("names", [None, [], ["A", "B"], "LlamaForCausalLM"])
def test_not_one_architecture(make_model, names: object) -> None:
    fails(make_model("m", architectures=names), f"`architectures` should hold one name, found {names!r}", PlanError)


def test_layer_count_that_is_no_number(make_model) -> None:
    model = open_checkpoint(make_model("m", num_hidden_layers="two"))
    with pytest.raises(CheckpointError, match="`num_hidden_layers` should be a number of layers, found 'two'"):
        recognize(model).layers_of(model)


def test_unknown_tensors_are_taken_along(make_model, llama) -> None:
    extra = {"model.layers.1.self_attn.sink.weight": torch.ones(2), "model.layers.7.odd": torch.ones(2)}
    model = open_checkpoint(make_model("m", llama() | extra))
    architecture = recognize(model).extended([model])
    assert architecture.extra == ("model.layers.{layer}.self_attn.sink.weight", "model.layers.7.odd")
    assert architecture.layer[-1].name == "model.layers.{layer}.self_attn.sink.weight"
    assert architecture.before[-1].name == "model.layers.7.odd"
    assert architecture.layer[-1].optional
    assert architecture.before[-1].optional
