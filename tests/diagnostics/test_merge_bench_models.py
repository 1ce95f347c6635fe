"""Generated checkpoints: the shapes of real models, values like those of fine-tunes, and where they may lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergecore import ConfigError, RunError, methods, plan
from mergecore.checkpoint.dtypes import Dtype
from mergecore.diagnostics import merge_bench_models, merge_bench_place
from mergecore.diagnostics.merge_bench_configs import config_for, fewest_tunes
from mergecore.diagnostics.merge_bench_models import ModelSet, generate, is_generated, no_progress
from mergecore.diagnostics.merge_bench_place import generated_models, output_folder, tiny_models
from mergecore.diagnostics.merge_bench_shapes import SHAPES, Shape, shape_like

SMALL = Shape(hidden=64, intermediate=160, layers=2, heads=4, key_value_heads=2, vocabulary=256)
SET = ModelSet(SMALL, Dtype.BF16, tunes=2, shard_bytes=100_000)
WEIGHT = "model.layers.1.mlp.up_proj.weight"


def load(model: Path) -> dict[str, torch.Tensor]:
    return {name: w for file in sorted(model.glob("*.safetensors")) for name, w in load_file(file).items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two fine-tunes in several shards."""
    return generate(SET, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("name", "elements"), [("llama-1b", 1_100_048_384), ("llama-8b", 8_030_261_248), ("mixtral", 46_702_792_704)]
)
def test_shapes_have_as_many_elements_as_the_real_models(name: str, elements: int) -> None:
    assert SHAPES[name].elements == elements


def test_shapes_with_fewer_layers_and_unknown_ones() -> None:
    assert shape_like("mixtral", 3) == replace(SHAPES["mixtral"], layers=3)
    assert shape_like("llama-8b") is SHAPES["llama-8b"]
    with pytest.raises(ConfigError, match="--like: `lama-8b` is not known .hint: did you mean `llama-8b`"):
        shape_like("lama-8b")
    with pytest.raises(ConfigError, match="--like: `gpt` is not known .hint: there are llama-1b, llama-8b, mixtral"):
        shape_like("gpt")


def test_models_are_whole_and_near_their_base(models: list[Path]) -> None:
    base, first, second = map(load, models)
    index = json.loads((models[0] / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == base.keys() == first.keys() == set(SMALL.tensors())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in base.values()) == SET.model_bytes
    assert base[WEIGHT].float().std() == pytest.approx(0.02, rel=0.05)
    assert base["model.norm.weight"].float().mean() == pytest.approx(1, rel=0.05)
    assert (first[WEIGHT].float() - base[WEIGHT].float()).std() == pytest.approx(0.0002, rel=0.1)
    assert (second[WEIGHT].float() - base[WEIGHT].float()).std() == pytest.approx(0.002, rel=0.1)


def test_many_deltas_have_equal_magnitudes(models: list[Path]) -> None:
    base, first, _ = map(load, models)
    delta = (first[WEIGHT].float() - base[WEIGHT].float()).abs()
    values, counts = delta.unique(return_counts=True)
    assert values[0] == 0
    assert counts[0] > 0.1 * delta.numel()
    assert counts.max() < 0.9 * delta.numel()
    assert len(values) < 0.05 * delta.numel()


@pytest.mark.parametrize("dtype", [Dtype.F16, Dtype.F32])
def test_other_dtypes(tmp_path: Path, dtype: Dtype) -> None:
    base, _ = map(load, generate(replace(SET, dtype=dtype, tunes=1), tmp_path))
    assert {w.dtype for w in base.values()} == {getattr(torch, dtype.torch_name)}
    assert json.loads((tmp_path / "base/config.json").read_text())["dtype"] == dtype.torch_name


def test_another_process_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_bench_models, "default_workers", lambda: 1)
    more_than_a_block = ModelSet(replace(SMALL, layers=1, vocabulary=17_000), Dtype.F16, tunes=1)
    assert more_than_a_block.model_bytes > merge_bench_models.SMALL_BYTES
    outside, here = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    here.mkdir()
    generate(more_than_a_block, outside)
    monkeypatch.setattr(merge_bench_models, "SMALL_BYTES", 1 << 30)
    generate(more_than_a_block, here)
    files = [path.relative_to(outside) for path in outside.rglob("*.*")]
    assert len(files) == 7
    assert all((outside / file).read_bytes() == (here / file).read_bytes() for file in files)


@pytest.mark.parametrize("like", ["llama-1b", "mixtral"])
def test_tiny_models_are_known_to_the_planner(tmp_path: Path, like: str) -> None:
    base, *_ = tiny_models(ModelSet(shape_like(like), Dtype.BF16, tunes=1), tmp_path)
    made = plan({"merge_method": "passthrough", "models": [{"model": str(base)}]})
    assert made.notes == ()
    assert {t.name for t in made.tensors} == set(shape_like(like).tiny().tensors())


@pytest.mark.parametrize("name", methods.names())
def test_each_method_has_a_config(tmp_path: Path, name: str) -> None:
    method = methods.get(name)
    few, many = fewest_tunes(method), max(3, fewest_tunes(method))
    folders = generate(ModelSet(SMALL.tiny(), Dtype.BF16, many), tmp_path)
    for models in (folders, folders[: 1 + few]):
        config = config_for(method, models, Dtype.BF16)
        made = plan(config, strict=True)
        assert made.method == name
        assert len(made.models) <= len(models)
    assert config["dtype"] == "bfloat16"


def test_configs_of_the_usual_kinds() -> None:
    base, *tunes = folders = [Path(name) for name in ("base", "a", "b", "c")]
    assert config_for(methods.get("slerp"), folders, Dtype.F16) == {
        "merge_method": "slerp", "base_model": "base", "models": [{"model": "base"}, {"model": "a"}],
        "parameters": {"t": 0.3}, "dtype": "float16",
    }  # fmt: skip
    ties = config_for(methods.get("ties"), folders, Dtype.F32)
    assert ties["base_model"] == str(base)
    assert [entry["model"] for entry in ties["models"]] == list(map(str, tunes))
    assert [entry["parameters"]["weight"] for entry in ties["models"]] == [0.6, 0.4, 0.6]
    assert config_for(methods.get("passthrough"), folders, Dtype.BF16) == {
        "merge_method": "passthrough", "models": [{"model": "a"}], "dtype": "bfloat16",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--models: `model_stock` needs 2 fine-tunes, not 1"):
        config_for(methods.get("model_stock"), folders[:2], Dtype.BF16)


def test_models_that_are_there_are_used_again(tmp_path: Path) -> None:
    with output_folder(tmp_path) as outputs:
        told: list[str] = []
        for keep, lines in ((True, 1), (False, 1)):
            with generated_models(SET, tmp_path / "models", outputs, keep, told.append, no_progress) as folders:
                assert [folder.name for folder in folders] == ["base", "tune1", "tune2"]
            assert len(told) == lines
            assert is_generated(SET, tmp_path / "models")
    assert told == [f"Generating 3 models, 0.7 MB, in {tmp_path / 'models'}"]
    assert not outputs.exists()


def test_new_models_are_removed_unless_kept(tmp_path: Path) -> None:
    shown: list[int] = []
    for folder in (tmp_path / "models", None):
        with (
            output_folder(tmp_path) as outputs,
            generated_models(SET, folder, outputs, False, lambda line: None, no_progress) as folders,
        ):
            shown.append(len(list(folders[0].parent.iterdir())))
    assert shown == [4, 4]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_bench_models, "write_at", full)
    with pytest.raises(RunError, match=r"model-00001-of-.*safetensors: the disk is full"):
        generate(SET, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_something_else(tmp_path: Path, models: list[Path]) -> None:
    with pytest.raises(ConfigError, match="holds generated models of another kind: tunes 2, not 3 .hint: name another"):
        is_generated(replace(SET, tunes=3), models[0].parent)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        ConfigError, match="--folder: `.*` is not empty and holds no generated models .hint: name a new"
    ):
        is_generated(SET, tmp_path)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match="--out: `.*none` can't be written to: No such file"),
        output_folder(tmp_path / "none"),
    ):
        pass
    with (
        output_folder(tmp_path) as outputs,
        pytest.raises(RunError, match="--folder: `.*file/models` can't be made: Not a directory"),
        generated_models(SET, tmp_path / "file/models", outputs, False, lambda line: None, no_progress),
    ):
        pass


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_bench_place, "free_bytes", lambda folder: 5_000_000_000)
    large = replace(SET, shape=SHAPES["llama-1b"])
    message = "the disk has 5.00 GB free, but the models and an output take 8.8. GB .hint: take fewer --layers"
    with (
        output_folder(tmp_path) as outputs,
        pytest.raises(RunError, match=message),
        generated_models(large, None, outputs, False, lambda line: None, no_progress),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
