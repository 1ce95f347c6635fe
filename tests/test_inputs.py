"""Merges of every kind of input: folders of safetensors or pickled files, single files, repositories on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore import MergeError, PlanError, merge, plan
from mergecore.checkpoint.location import Download


def source(*models: object, method: str = "linear", **rest: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": method, "models": entries, **rest}


def random(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("_0_", ".0."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def unet(seed: int) -> dict[str, Tensor]:
    return random(seed, down_0_to_q=(8, 6), conv_in=(4, 3, 3, 3), bias=(5,))


def pickle(folder: Path, tensors: Mapping[str, Tensor], *, new_format: bool) -> None:
    """In the place of the folder's safetensors file. The elements of matrices are in another order than usual."""
    (folder / "model.safetensors").unlink()
    turned = {name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    torch.save(turned, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_pickled_weights_give_the_same_bytes(make_model, llama, tmp_path: Path, method: str, new_format: bool) -> None:
    base = make_model("base", seed=3)
    pairs = [(make_model(f"{i}", seed=i, dtype=torch.bfloat16), make_model(f"{i}p")) for i in (1, 2)]
    for i, (_, pickled) in enumerate(pairs, start=1):
        pickle(pickled, llama(seed=i, dtype=torch.bfloat16), new_format=new_format)
    outputs = []
    for kind in (0, 1):
        config = source(*(pair[kind] for pair in pairs), method=method)
        if method == "ties":
            config |= {"base_model": str(base), "parameters": {"density": 0.5}}
        merge(config, tmp_path / f"out{kind}", workers=0)
        outputs.append((tmp_path / f"out{kind}" / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_files_of_weights_are_merged_by_name(tmp_path: Path) -> None:
    a, b = unet(0), unet(1)
    torch.save({"state_dict": a, "epoch": 3}, tmp_path / "a.ckpt")
    save_file(b, tmp_path / "b.safetensors")
    merge(source(tmp_path / "a.ckpt", tmp_path / "b.safetensors"), tmp_path / "out", workers=0)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == a.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (a[name] + 2 * b[name]) / 3)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "README.md", "mergecore_config.yml", "mergecore.json"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "There is no config.json: the tensors were merged by their names." in card
    assert "library_name" not in card


def test_an_input_file_is_never_overwritten(tmp_path: Path) -> None:
    save_file(unet(0), tmp_path / "a.safetensors")
    with pytest.raises(PlanError, match="is the folder of the input model"):
        merge(source(tmp_path / "a.safetensors"), tmp_path, workers=0, overwrite=True)
    assert (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("shard_size", [5000, 300])
def test_diffusion_models(tmp_path: Path, shard_size: int) -> None:
    config = {"_class_name": "UNet2DConditionModel", "block_out_channels": [8, 8]}
    for i in (0, 1):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "config.json").write_text(json.dumps(config))
        save_file(unet(i), tmp_path / f"{i}" / "diffusion_pytorch_model.safetensors")
    out = tmp_path / "out"
    result = merge(source(tmp_path / "0", tmp_path / "1"), out, workers=0, shard_size=shard_size)
    assert json.loads((out / "config.json").read_text()) == config
    assert all(shard.name.startswith("diffusion_pytorch_model") for shard in result.plan.shards)
    assert (out / "diffusion_pytorch_model.safetensors.index.json").exists() == (shard_size == 300)
    again = merge(source(out), tmp_path / "again", workers=0)
    assert {tensor.name for tensor in again.plan.tensors} == unet(0).keys()


def files_with_different_tensors(tmp_path: Path) -> tuple[Path, Path]:
    save_file(random(0, both=(3,), only_a=(2,)), tmp_path / "a.safetensors")
    save_file(random(1, both=(3,), only_b=(2,)), tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_tensors_that_not_all_files_have(tmp_path: Path) -> None:
    config = source(*files_with_different_tensors(tmp_path))
    hint = "--tensors common leaves such tensors out, --tensors any merges them from the models that have them"
    with pytest.raises(PlanError) as caught:
        plan(config)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}/b.safetensors: lacks the tensor `only_a`, which the output's `only_a` is made from",
        f"{tmp_path}/a.safetensors: lacks the tensor `only_b`, which the output's `only_b` is made from",
    ]
    assert {problem.hint for problem in caught.value.problems} == {hint}
    assert [tensor.name for tensor in plan(config, tensors="common").tensors] == ["both"]
    made = {tensor.name: [i.model for i in tensor.inputs] for tensor in plan(config, tensors="any").tensors}
    assert made == {"both": [0, 1], "only_a": [0], "only_b": [1]}


def test_any_tensor_is_merged_from_the_files_that_have_it(tmp_path: Path) -> None:
    a, b = files_with_different_tensors(tmp_path)
    merge(source(a, b), tmp_path / "out", workers=0, tensors="any")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["only_a"], load_file(a)["only_a"])
    assert torch.equal(merged["only_b"], load_file(b)["only_b"])


def test_which_tensors_is_a_question_for_files_only(make_model) -> None:
    folder = make_model("m")
    with pytest.raises(PlanError, match="`tensors: any` is for files of weights without a config.json"):
        plan(source(folder), tensors="any")
    with pytest.raises(PlanError, match="^tensors: should be one of all, common, any, found `some`$"):
        plan(source(folder), tensors="some")


def test_models_on_the_hub(hub, make_model, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    a, b = make_model("a", shards=2), make_model("b", seed=1)
    (a / "tokenizer.json").write_text('{"of": "a"}')
    commits = [hub.add("org/a", a), hub.add("org/b", b, reference="v2")]
    local = merge(source(a, b), tmp_path / "local", workers=0)
    config = source("org/a", "org/b@v2")

    planned = plan(config)
    weights = sum(path.stat().st_size for path in (*a.iterdir(), *b.iterdir()))
    assert planned.download_bytes == weights
    assert [model.commit for model in planned.models] == commits
    assert not (tmp_path / "cache").exists()

    told: list[Download] = []
    merge(config, tmp_path / "out", workers=0, on_download=told.append)
    assert [str(download.model) for download in told] == ["org/a", "org/b@v2"]
    weights_file = "model.safetensors"
    assert (tmp_path / "out" / weights_file).read_bytes() == (tmp_path / "local" / weights_file).read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"of": "a"}'
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["org/a", "org/b"]
    assert f"- org/a (commit {commits[0]})\n- org/b@v2 (commit {commits[1]})\n" in card

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told.clear()
    again = merge(config, tmp_path / "again", workers=0, on_download=told.append)
    assert not told
    assert (tmp_path / "again" / weights_file).read_bytes() == (tmp_path / "local" / weights_file).read_bytes()
    assert again.plan.digest == planned.digest != local.plan.digest


def test_nothing_is_downloaded_for_a_merge_that_can_not_be_written(hub, make_model, tmp_path: Path) -> None:
    hub.add("org/a", make_model("a"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(MergeError, match="is not empty"):
        merge(source("org/a"), tmp_path / "out", workers=0)
    assert not (tmp_path / "cache").exists()


def test_all_problems_with_models_on_the_hub_are_told_at_once(hub, make_model) -> None:
    hub.add("org/a", make_model("a"))
    hub.gated.add("org/gated")
    with pytest.raises(MergeError) as caught:
        plan(source("org/a", "org/gated", "org/a@v7", "org/nothing"))
    assert [problem.where for problem in caught.value.problems] == ["org/gated", "org/a@v7", "org/nothing"]
