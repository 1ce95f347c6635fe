"""Models of several modules: vision-language models, encoder-decoders, and `modules:` in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_checkpoints import layers

from mergecore import PlanError, merge, plan
from mergecore.checkpoint.definitions import definitions
from mergecore.config import load
from mergecore.errors import ConfigError
from mergecore.output.config_json import config_json
from mergecore.plan.plan import OutputTensor, Plan

N_TEXT, N_VISION = 3, 2
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
    "text_config": {"num_hidden_layers": N_TEXT, "layer_types": ["a", "b", "c"], "vocab_size": 9},
    "vision_config": {"num_hidden_layers": N_VISION},
}  # fmt: skip


def llava_names() -> list[str]:
    """As on the Hub, all that is required."""
    text, projector, vision = definitions()["LlavaForConditionalGeneration"][0].modules
    names = []
    for module, n in ((text, N_TEXT), (projector, 0), (vision, N_VISION)):
        required = [w for w in module.weights if not w.optional]
        names += [w.name for w in required if w not in module.layer]
        names += [w.name.replace("{layer}", str(i)) for i in range(n) for w in required if w in module.layer]
    return [*names, "language_model.lm_head.weight"]


@pytest.fixture
def llava(make_model):
    def make(name: str, rename: dict[str, str] | None = None, **config: Any) -> Path:
        names = llava_names()
        for old, new in (rename or {}).items():
            names = [new + n.removeprefix(old) if n.startswith(old) else n for n in names]
        generator = torch.Generator().manual_seed(len(name))
        tensors = {
            n: torch.rand(9 if "embed_tokens" in n or "lm_head" in n else 4, 4, generator=generator) for n in names
        }
        return make_model(name, tensors, **{**LLAVA, "num_hidden_layers": None, **config})

    return make


def entries(*models: Path, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": str(model), **({"parameters": parameters} if parameters else {})} for model in models]


def tensor(made: Plan, name: str) -> OutputTensor:
    return next(t for t in made.tensors if t.name == name)


def fails(message: str, config: dict[str, Any]) -> None:
    with pytest.raises(PlanError) as caught:
        plan(config)
    assert message in str(caught.value)


def test_models_stand_for_all_modules(llava) -> None:
    made = plan({"merge_method": "linear", "models": entries(llava("a"), llava("b"), weight=1)})
    assert {t.name for t in made.tensors} == set(llava_names())
    assert all(len(t.inputs) == 2 for t in made.tensors)
    assert [(m.module, m.n) for m in made.layers] == [
        ("text_decoder", 3),
        ("multi_modal_projector", 0),
        ("vision_tower", 2),
    ]
    assert config_json(made)["text_config"]["num_hidden_layers"] == N_TEXT


def test_gradients_run_over_the_layers_of_each_module(llava) -> None:
    a = llava("a")
    made = plan({"merge_method": "linear", "models": entries(a, weight=[1, 2]), "parameters": {"normalize": False}})
    last = tensor(made, "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight").params
    middle = tensor(made, "language_model.model.layers.1.mlp.up_proj.weight").params
    assert last is not None
    assert middle is not None
    assert last.weight == (2.0,)  # type: ignore[attr-defined]
    assert middle.weight == (1.5,)  # type: ignore[attr-defined]


def test_each_module_its_own_way(llava) -> None:
    a, b = llava("a"), llava("b")
    slices = [{"sources": [{"model": str(m), "layer_range": r}]} for m, r in ((a, [0, 2]), (b, [0, 3]))]
    made = plan({
        "merge_method": "passthrough",
        "modules": {
            "text_decoder": {"slices": slices, "parameters": {"scale": 3}},
            "vision_tower": {"models": entries(b)},
        },
        "parameters": {"scale": 2},
    })  # fmt: skip
    assert [(m.module, m.n) for m in made.layers] == [("text_decoder", 5), ("vision_tower", 2)]
    assert not [t.name for t in made.tensors if t.name.startswith("multi_modal")]
    assert made.notes == ("not in `modules`, so not written: multi_modal_projector",)
    stacked = tensor(made, "language_model.model.layers.4.mlp.up_proj.weight")
    assert stacked.inputs[0].tensor_name == "language_model.model.layers.2.mlp.up_proj.weight"
    assert stacked.params.scale == (3.0,)
    first = tensor(made, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight")
    assert first.params.scale == (2.0,)
    config = config_json(made)
    assert config["text_config"]["num_hidden_layers"] == 5
    assert config["text_config"]["layer_types"] == ["a", "b", "a", "b", "c"]
    assert config["vision_config"] == LLAVA["vision_config"]


def test_a_slice_comes_before_its_module_and_that_before_the_top(llava) -> None:
    source = {"model": str(llava("a")), "layer_range": [0, 1]}
    made = plan({
        "merge_method": "passthrough",
        "modules": {"text_decoder": {
            "slices": [{"sources": [source], "parameters": {"scale": 5}}, {"sources": [source]}],
            "parameters": {"scale": 3},
        }},
        "parameters": {"scale": 2},
    })  # fmt: skip
    up = "language_model.model.layers.{}.mlp.up_proj.weight"
    assert [tensor(made, up.format(i)).params.scale for i in (0, 1)] == [(5.0,), (3.0,)]


def test_the_base_is_added_to_each_module(llava) -> None:
    base, a = llava("base"), llava("a")
    made = plan({"merge_method": "task_arithmetic", "base_model": str(base), "parameters": {"weight": 1},
                 "modules": {"vision_tower": {"models": entries(a)}}})  # fmt: skip
    assert all(t.base is not None for t in made.tensors)


def test_a_module_that_there_is_not(llava) -> None:
    fails(
        "config: modules.vision: a LlavaForConditionalGeneration has no module `vision` (hint: its modules are: "
        "text_decoder, multi_modal_projector, vision_tower)",
        {"merge_method": "passthrough", "modules": {"vision": {"models": entries(llava("a"))}}},
    )


def test_slices_of_several_modules(llava) -> None:
    slices = [{"sources": [{"model": str(llava("a")), "layer_range": [0, 2]}]}]
    fails(
        "config: slices: several modules of a LlavaForConditionalGeneration have layers: text_decoder, vision_tower "
        "(hint: write the `slices` of each under `modules`)",
        {"merge_method": "passthrough", "slices": slices},
    )


def test_layer_range_beyond_a_module(llava) -> None:
    slices = [{"sources": [{"model": str(llava("a")), "layer_range": [0, 3]}]}]
    fails(
        "in slice 1 of vision_tower is beyond the model, which has 2 layers",
        {"merge_method": "passthrough", "modules": {"vision_tower": {"slices": slices}}},
    )


def test_slices_of_a_state_dict(make_model, llama) -> None:
    a = make_model("a")
    (a / "config.json").write_text("{}")
    fails(
        "config: slices: a state dict has no layers to slice (hint: write `models`)",
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": str(a), "layer_range": [0, 1]}]}]},
    )
    made = plan({"merge_method": "linear", "models": entries(a, weight=[1, 2])})
    assert {t.name for t in made.tensors} == set(llama())
    assert {t.params.weight for t in made.tensors} == {(1.0,)}


def test_the_default_module(make_model) -> None:
    a = make_model("a")
    whole = plan({"merge_method": "passthrough", "models": entries(a)})
    assert (
        plan({"merge_method": "passthrough", "modules": {"default": {"models": entries(a)}}}).tensors == whole.tensors
    )


def test_layouts_of_one_model_can_be_merged(llava) -> None:
    """As on the Hub, and as transformers 5 saves it: the output is in the donor's layout."""
    hub, saved = llava("hub"), llava("saved", {"vision_tower.vision_model.": "vision_tower."})
    made = plan({"merge_method": "linear", "models": entries(hub, saved, weight=1)})
    assert {t.name for t in made.tensors} == set(llava_names())
    assert all(len(t.inputs) == 2 for t in made.tensors)
    other = plan({"merge_method": "linear", "models": entries(saved, hub, weight=1)})
    assert "vision_tower.encoder.layers.0.mlp.fc1.weight" in {t.name for t in other.tensors}


def test_files_of_a_vision_model_are_copied(llava, tmp_path: Path) -> None:
    a = llava("a")
    (a / "preprocessor_config.json").write_text("{}")
    merge({"merge_method": "passthrough", "models": entries(a)}, tmp_path / "out", workers=0)
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == "{}"
    assert not (tmp_path / "out" / "processor_config.json").exists()


def moe(make_model, name: str, *, dense: int, n_layers: int = 3, without: str = "") -> Path:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    attention = [f"self_attn.{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    names += layers("model.layers", n_layers, "input_layernorm.weight", "post_attention_layernorm.weight", *attention)
    matrices = [f"{n}_proj.weight" for n in ("gate", "up", "down")]
    names += layers("model.layers", dense, *(f"mlp.{m}" for m in matrices))
    experts = ["mlp.gate.weight", *(f"mlp.experts.{e}.{m}" for e in range(2) for m in matrices)]
    names += [f"model.layers.{i}.{n}" for i in range(dense, n_layers) for n in experts]
    tensors = {n: torch.ones(2, 2) for n in names if n != without}
    settings = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 2}
    return make_model(name, tensors, n_layers=n_layers, **settings)


def test_experts_are_written_one_by_one(make_model) -> None:
    a, b = moe(make_model, "a", dense=1), moe(make_model, "b", dense=1)
    made = plan({"merge_method": "linear", "models": entries(a, b, weight=1)})
    names = [t.name for t in made.tensors if ".layers.1.mlp." in t.name]
    assert names[1:] == [
        f"model.layers.1.mlp.experts.{e}.{m}_proj.weight" for e in (0, 1) for m in ("gate", "up", "down")
    ]
    assert made.notes == ()


def test_an_expert_that_is_missing(make_model) -> None:
    a = moe(make_model, "a", dense=1, without="model.layers.2.mlp.experts.1.up_proj.weight")
    fails(
        "lacks the tensor `model.layers.2.mlp.experts.1.up_proj.weight`",
        {"merge_method": "passthrough", "models": entries(a)},
    )


def test_a_dense_layer_cannot_be_merged_with_a_sparse_one(make_model) -> None:
    a, b = moe(make_model, "a", dense=1), moe(make_model, "b", dense=2)
    fails(
        "b: lacks the tensor `model.layers.1.mlp.gate.weight`",
        {"merge_method": "linear", "models": entries(a, b, weight=1)},
    )


def test_the_last_norm_takes_all_sources_of_the_last_slice(make_model) -> None:
    a, b = str(make_model("a")), str(make_model("b"))
    slices = [
        {"sources": [{"model": a, "layer_range": [0, 1]}]},
        {"sources": [{"model": a, "layer_range": [1, 2]}, {"model": b, "layer_range": [1, 2]}]},
    ]
    made = plan({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}})
    assert [len(tensor(made, n).inputs) for n in ("model.embed_tokens.weight", "model.norm.weight")] == [1, 2]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            "vision:\n    modles: [{model: a}]",
            "merge.yml:4: `modles` is not a key of an entry of `modules` (hint: did you mean `models`?)",
        ),
        (
            "vision:\n    models: [{modle: a}]",
            "merge.yml:4: `modle` is not a key of an entry of `models` (hint: did you mean",
        ),
        (
            "vision: {models: [{model: a}], slices: [{sources: []}]}",
            "merge.yml:3: `models` and `slices` both have entries",
        ),
        (
            "vision: {}",
            "merge.yml:3: there is nothing to merge in modules.vision: neither `models` nor `slices` has entries",
        ),
        ("vision: 3", "merge.yml:3: vision: expected a mapping, found 3"),
        ("vision: {models: [{model: a}], parameters: {wieght: 1}}", "did you mean `weight`?"),
    ],
)
def test_modules_in_a_config(tmp_path: Path, monkeypatch, modules: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("merge.yml").write_text(f"merge_method: linear\nmodules:\n  {modules}\n")
    with pytest.raises(ConfigError) as caught:
        load("merge.yml")
    assert message in str(caught.value)


def test_the_resolved_config_has_the_modules(tmp_path: Path) -> None:
    config = {"merge_method": "linear", "modules": {"x": {"models": entries(tmp_path, weight=1)}}}
    assert load(config).resolved() == config
    assert load(load(config).resolved()) == load(config)
