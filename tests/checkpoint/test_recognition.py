"""What a model is taken for."""

from __future__ import annotations

import pytest
from synthetic_checkpoints import checkpoint, layers, model_of

from mergecore.checkpoint.definitions import definitions
from mergecore.checkpoint.inference import is_inferred
from mergecore.checkpoint.recognition import is_raw, raw, recognize
from mergecore.errors import CheckpointError, PlanError


@pytest.mark.parametrize("names", [None, [], ["A", "B"], "LlamaForCausalLM"])
def test_not_one_architecture(names: object) -> None:
    with pytest.raises(PlanError, match="model/config.json: `architectures` should hold one name, found "):
        recognize(checkpoint([], {"architectures": names}))


def test_the_type_decides_between_definitions_of_one_name() -> None:
    for expected in definitions()["PhiForCausalLM"]:
        assert recognize(model_of(expected)).definition == expected.definition


def test_without_a_type_the_names_decide() -> None:
    for expected in definitions()["PhiForCausalLM"]:
        model = model_of(expected)
        del model.config["model_type"]
        assert recognize(model).definition == expected.definition


@pytest.mark.parametrize("layout", range(4))
def test_the_output_keeps_the_layout_of_a_model(layout: int) -> None:
    expected = definitions()["LlavaForConditionalGeneration"][layout]
    found = recognize(model_of(expected))
    assert [m.weights for m in found.modules] == [m.weights for m in expected.modules]


def test_an_unknown_name_is_inferred() -> None:
    model = checkpoint(layers("model.layers", 2, "attn.q.weight"), {"architectures": ["X"], "num_hidden_layers": 2})
    assert is_inferred(recognize(model))
    assert recognize(model).name == "X"


def test_a_config_with_a_type_and_no_name_is_inferred() -> None:
    model = checkpoint(layers("h", 2, "attn.q.weight"), {"model_type": "new", "n_layer": 2})
    assert is_inferred(recognize(model))


@pytest.mark.parametrize("config", [{}, {"_class_name": "UNet2DConditionModel", "layers_per_block": 2}])
def test_without_name_and_type_all_tensors_are_loose(config: dict[str, object]) -> None:
    one, other = checkpoint(["a.0.w", "b"], config), checkpoint(["b", "c"], config)
    assert is_raw(one)
    (module,) = recognize(one).modules
    assert [(weight.name, weight.optional) for weight in module.before] == [("a.0.w", False), ("b", False)]
    assert module.layers_of(one) == 0
    assert [weight.name for weight in raw([one, other]).modules[0].before] == ["a.0.w", "b", "c"]


def test_layer_count_that_is_no_number() -> None:
    model = checkpoint([], {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": "two"})
    with pytest.raises(CheckpointError, match="`num_hidden_layers` should be a number, found 'two'"):
        recognize(model).modules[0].layers_of(model)


def test_a_config_that_leaves_out_the_default_number_of_layers() -> None:
    """As that of LLaVA 1.5, whose `text_config` has little but a model type."""
    model = model_of(definitions()["LlavaForConditionalGeneration"][0])
    model.config["text_config"] = {"model_type": "llama"}
    assert recognize(model).modules[0].layers_of(model) == 3


def test_unknown_tensors_are_taken_along() -> None:
    model = model_of(definitions()["LlavaForConditionalGeneration"][0])
    unknown = [
        "language_model.model.layers.1.self_attn.sink", "language_model.model.layers.7.odd",
        "vision_tower.vision_model.encoder.layers.0.gate", "vision_tower.extra",
    ]  # fmt: skip
    model.tensors.update(checkpoint(unknown, {}).tensors)
    text, _, vision = recognize(model).fitted([model]).modules
    assert text.layer[-1].name == "language_model.model.layers.{layer}.self_attn.sink"
    assert text.before[-1].name == "language_model.model.layers.7.odd"
    assert vision.layer[-1].name == "vision_tower.vision_model.encoder.layers.{layer}.gate"
    assert vision.before[-1].name == "vision_tower.extra"
    assert all(w.optional for w in (text.layer[-1], text.before[-1], vision.layer[-1], vision.before[-1]))


def test_experts_are_counted_by_the_config_or_else_by_names() -> None:
    model = model_of(definitions()["MixtralForCausalLM"][0])
    (module,) = recognize(model).modules
    assert module.experts_of(model) == 2
    model.config["num_local_experts"] = 5
    assert module.experts_of(model) == 5
    del model.config["num_local_experts"]
    assert module.experts_of(model) == 2
