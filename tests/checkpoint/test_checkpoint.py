"""Model folders: whole ones, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.errors import CheckpointError, MergeError


def test_one_file_or_several_are_the_same(make_model) -> None:
    one, three = open_checkpoint(make_model("one")), open_checkpoint(make_model("three", shards=3))
    assert one.tensors.keys() == three.tensors.keys()
    assert {Path(ref.file).name for ref in three.tensors.values()} == {
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    }


def fails(folder: Path, message: str, error: type[MergeError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)
    assert folder.name in str(caught.value)


def test_folder_without_config(make_model) -> None:
    folder = make_model("m")
    (folder / "config.json").unlink()
    assert open_checkpoint(folder).config == {}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_of_weights(make_model, llama, suffix: str) -> None:
    folder = make_model("m")
    torch.save(llama(), folder / "model.bin")
    model = open_checkpoint(folder / f"model{suffix}")
    assert model.folder == folder / f"model{suffix}"
    assert model.config == {}
    assert model.tensors.keys() == llama().keys()


def test_pickled_weights_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    files = {f"pytorch_model-0000{i}-of-00002.bin": {f"w{i}": torch.full((3,), i)} for i in (1, 2)}
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tensors = open_checkpoint(tmp_path).tensors
    assert {name: Path(tensor.file).name for name, tensor in tensors.items()} == weight_map


def test_a_stale_index_beside_a_single_file(make_model) -> None:
    folder = make_model("m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"old": "old.safetensors"}}))
    assert open_checkpoint(folder).tensors.keys() == open_checkpoint(folder / "model.safetensors").tensors.keys()


def test_config_that_is_no_json(make_model) -> None:
    folder = make_model("m")
    (folder / "config.json").write_text("{")
    fails(folder, "is not valid JSON")


def test_folder_without_weights(make_model) -> None:
    folder = make_model("m")
    (folder / "model.safetensors").unlink()
    fails(folder, "holds no weights: neither model.safetensors nor pytorch_model.bin nor an index")


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
