"""Merges of several stages, from YAML to the folders that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mergecore
from mergecore import CheckpointError, PlanError, RunError, merge, plan_stages, run


def linear(*models: object, name: str | None = None, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": entries} | ({} if name is None else {"name": name}) | more


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def models(make_model) -> list[Path]:
    return [make_model(name, seed=seed) for seed, name in enumerate("xyz")]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"x", "y", "z"}


@pytest.mark.parametrize("workers", [0, 1])
def test_stages_give_what_they_give_one_by_one(models, tmp_path: Path, workers: int) -> None:
    x, y, z = models
    (tmp_path / "by_hand").mkdir()
    one, other = tmp_path / "by_hand" / "one", tmp_path / "by_hand" / "other"
    merge(linear(x, y, dtype="bfloat16"), one, workers=0)
    merge(linear(one, z), other, workers=0)
    config = [linear("one", z), linear(x, y, name="one", dtype="bfloat16")]
    result = merge(config, tmp_path / "out", workers=workers)
    assert equal(tmp_path / "out", other)
    assert (tmp_path / "out" / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert left_in(tmp_path) == {"by_hand", "out"}
    assert (result.plan.name, result.folder, result.stays) == (None, tmp_path / "out", True)
    (stage,) = result.stages
    assert (stage.plan.name, stage.stays, stage.folder.exists()) == ("one", False, False)


def test_the_card_and_the_config_tell_the_whole_chain(models, tmp_path: Path) -> None:
    x, y, z = models
    config = [
        linear(x, y, name="one"),
        linear(x, name="unrelated"),
        linear("one", "one@2", z, name="two"),
        linear("two", x),
    ]
    merge(config, tmp_path / "out", workers=0)
    chain = yaml.safe_load_all((tmp_path / "out" / "mergecore_config.yml").read_text())
    assert [document.get("name") for document in chain] == ["one", "two", None]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "method `linear`, the last of 3 stages" in card
    assert card.split("## Models\n\n")[1].startswith(f"- {x}\n- {y}\n- {z}\n\n")
    assert "name: two" in card
    merge(tmp_path / "out" / "mergecore_config.yml", tmp_path / "again", workers=0)
    assert equal(tmp_path / "out", tmp_path / "again")


def test_several_results_go_to_folders_of_their_names(models, tmp_path: Path) -> None:
    x, y, z = models
    config = [linear(x, y, name="one"), linear("one", z, name="two"), linear("one", x, name="three")]
    result = merge(config, tmp_path / "out", workers=0)
    assert left_in(tmp_path) == {"out"}
    assert left_in(tmp_path / "out") == {"two", "three"}
    assert [stage.folder.name for stage in (*result.stages, result)] == ["one", "two", "three"]


def test_the_only_result_goes_to_out_whatever_its_name(models, tmp_path: Path) -> None:
    merge([linear(*models[:2], name="one"), linear("one", models[2], name="two")], tmp_path / "out", workers=0)
    assert (tmp_path / "out" / "config.json").exists()


def test_stages_that_are_kept(models, tmp_path: Path) -> None:
    config = [linear(*models[:2], name="one"), linear("one", models[2])]
    merge(config, tmp_path / "out", workers=0, keep_stages=tmp_path / "kept")
    assert left_in(tmp_path) == {"out", "kept"}
    merge(linear(*models[:2]), tmp_path / "one", workers=0)
    assert equal(tmp_path / "kept" / "one", tmp_path / "one")
    with pytest.raises(PlanError, match="kept/one: is not empty .hint: --overwrite replaces the model in it"):
        merge(config, tmp_path / "new", workers=0, keep_stages=tmp_path / "kept")
    assert not (tmp_path / "new").exists()


def test_a_stage_is_deleted_as_soon_as_nothing_needs_it(models, tmp_path: Path, monkeypatch) -> None:
    x, y, z = models
    config = [linear(x, y, name="a"), linear("a", z, name="b"), linear("b", z, name="c"), linear("c", "b")]
    there = []
    begin = run.start_folder

    def look(folder: Path, *args: Any, **options: Any) -> Any:
        between = tmp_path / ".out.stages"
        there.append({path.name for path in between.iterdir()} if between.exists() else set())
        return begin(folder, *args, **options)

    monkeypatch.setattr(run, "start_folder", look)
    merge(config, tmp_path / "out", workers=0)
    assert there == [set(), {"a"}, {"b"}, {"b", "c"}]
    assert left_in(tmp_path) == {"out"}


def test_a_failure_leaves_the_stages_that_are_done(models, llama, make_model, tmp_path: Path) -> None:
    broken = llama()
    broken["model.norm.weight"][0] = float("nan")
    config = [linear(*models[:2], name="one"), linear("one", make_model("broken", broken))]
    with pytest.raises(RunError, match="holds NaN"):
        merge(config, tmp_path / "out", workers=0)
    assert left_in(tmp_path / ".out.stages") == {"one"}
    assert not (tmp_path / "out" / "config.json").exists()
    result = merge(config, tmp_path / "out", workers=0, allow_nonfinite=True)
    assert result.stages[0].report.written_bytes == 0
    assert left_in(tmp_path) == {"broken", "out"}


def test_what_a_run_that_was_killed_left_is_replaced(models, tmp_path: Path) -> None:
    left = tmp_path / ".out.stages" / "one"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"old")
    (left / "model-00001-of-00002.safetensors.partial").write_bytes(b"old")
    merge([linear(*models[:2], name="one"), linear("one", models[2])], tmp_path / "out", workers=0)
    assert left_in(tmp_path) == {"out"}


def test_a_later_stage_is_checked_before_the_first_is_merged(models, make_model, tmp_path: Path) -> None:
    deep = make_model("deep", n_layers=3)
    planned = []
    stack = {
        "name": "stack",
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "one", "layer_range": span}]} for span in ([0, 2], [1, 2])],
    }
    fits = [linear(*models[:2], name="one"), stack, linear("stack", deep)]
    assert len(plan_stages(fits)) == 3
    stack["slices"] = [{"sources": [{"model": "one", "layer_range": [0, 3]}]}]
    with pytest.raises(PlanError, match=r"layer_range \[0, 3\] of one is beyond the model, which has 2 layers"):
        merge(fits, tmp_path / "out", workers=0, on_plan=planned.append)
    assert planned == []
    assert left_in(tmp_path) == {"deep"}


def test_planned_types_and_shapes_are_those_of_the_stage(models, tmp_path: Path) -> None:
    config = [linear(*models[:2], name="one", out_dtype="bfloat16"), linear("one", "one@2")]
    one, last = plan_stages(config, tmp_path / "out")
    assert {tensor.dtype.name for tensor in last.plan.tensors} == {"BF16"}
    assert [tensor.shape for tensor in last.plan.tensors] == [tensor.shape for tensor in one.plan.tensors]
    assert last.plan.read_bytes == one.plan.write_bytes - sum(len(shard.header) for shard in one.plan.shards)
    assert one.folder == tmp_path / ".out.stages" / "one"
    assert (one.stays, last.stays) == (False, True)


def test_one_seed_for_all_stages(models, tmp_path: Path) -> None:
    dare = {"merge_method": "dare_linear", "base_model": str(models[0]), "parameters": {"weight": 1, "density": 0.5}}
    config = [{**dare, "name": "one", "models": [{"model": str(models[1])}]}, {**dare, "models": [{"model": "one"}]}]
    seeds = {stage.plan.seed for stage in plan_stages(config)}
    assert len(seeds) == 1
    merge(config, tmp_path / "first", workers=0, seed=seeds.pop(), write_card=False)


def test_the_output_must_not_be_an_input_of_an_earlier_stage(models) -> None:
    with pytest.raises(PlanError, match="is the folder of the input model"):
        merge([linear(*models[:2], name="one"), linear("one", models[2])], models[0], workers=0, overwrite=True)


def test_a_model_that_is_missing_in_a_later_stage(models, tmp_path: Path) -> None:
    with pytest.raises((PlanError, CheckpointError), match="there is no model"):
        merge([linear(*models[:2], name="one"), linear("one", tmp_path / "nowhere")], tmp_path / "out", workers=0)


def test_plan_is_for_a_single_merge(models) -> None:
    with pytest.raises(
        mergecore.ConfigError, match=r"^config\[1\]: a second document begins here: this is a config of"
    ):
        mergecore.plan([linear(*models[:2], name="one"), linear("one", models[2])])
