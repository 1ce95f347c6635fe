"""config.json of the output: element type, tied heads, and what it says of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergecore import plan
from mergecore.output.config_json import config_json
from mergecore.plan.plan import Plan

TIED = "tie_word_embeddings"


def made_from(donor: dict[str, Any], folder: Path) -> Plan:
    made = plan({"merge_method": "passthrough", "models": [{"model": str(folder)}], "dtype": "bfloat16"})
    made.donor_config.clear()
    made.donor_config.update(donor)
    return made


@pytest.mark.parametrize(
    ("donor", "expected"),
    [
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32", "_name_or_path": "x"}, {"dtype": "bfloat16"}),
        ({"model_type": "x"}, {"model_type": "x", "torch_dtype": "bfloat16"}),
    ],
)
def test_element_type(make_model, donor: dict[str, Any], expected: dict[str, Any]) -> None:
    assert config_json(made_from(donor, make_model("a"))) == expected | {TIED: False}


@pytest.mark.parametrize(
    ("donor", "untied", "tied"),
    [
        ({TIED: True}, {TIED: False}, {TIED: True}),
        ({TIED: False}, {TIED: False}, {TIED: True}),
        ({"x": 1}, {"x": 1, TIED: False}, {"x": 1}),
        (
            {"text_config": {"vocab_size": 9, TIED: True}, "vision_config": {TIED: True}},
            {"text_config": {"vocab_size": 9, TIED: False}, "vision_config": {TIED: True}},
            {"text_config": {"vocab_size": 9, TIED: True}, "vision_config": {TIED: True}},
        ),
    ],
)
def test_tying_follows_what_is_written(make_model, llama, donor, untied, tied) -> None:
    without = {name: tensor for name, tensor in llama().items() if name != "lm_head.weight"}
    for folder, expected in ((make_model("untied"), untied), (make_model("tied", without), tied)):
        assert config_json(made_from(donor, folder)) == expected | {"torch_dtype": "bfloat16"}


def test_a_model_without_a_head_that_could_be_tied(make_model, llama) -> None:
    tensors = {name: tensor for name, tensor in llama().items() if name != "lm_head.weight"}
    tensors["score.weight"] = torch.ones(2, 24)
    folder = make_model("a", tensors, architectures=["LlamaForSequenceClassification"], tie_word_embeddings=True)
    assert config_json(plan({"merge_method": "passthrough", "models": [{"model": str(folder)}]}))[TIED] is True


def stacked(ranges: list[tuple[Path, int, int]]) -> tuple[dict[str, Any], Plan]:
    slices = [{"sources": [{"model": str(folder), "layer_range": [a, b]}]} for folder, a, b in ranges]
    made = plan({"merge_method": "passthrough", "slices": slices})
    return config_json(made), made


def test_what_is_said_of_single_layers_follows_them(make_model) -> None:
    a = make_model("a", n_layers=3, layer_types=["full", "sliding", "full"], no_rope_layers=[1, 1, 0],
                   mlp_only_layers=[0, 2], sliding_window_pattern=6, rope_scaling=[1, 2, 3])  # fmt: skip
    b = make_model("b", n_layers=3, layer_types=["x", "y", "z"], mlp_only_layers=[1])
    config, made = stacked([(a, 1, 3), (b, 0, 2)])
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["sliding", "full", "x", "y"]
    assert config["no_rope_layers"] == [1, 0, 1, 1]  # b says nothing: as in the donor
    assert config["mlp_only_layers"] == [1, 3]
    assert config["sliding_window_pattern"] == 6
    assert config["rope_scaling"] == [1, 2, 3]
    assert made.notes == ()


def test_a_model_that_does_not_say_it_of_all_its_layers(make_model) -> None:
    a = make_model("a", n_layers=2, layer_types=["full", "sliding"])
    b = make_model("b", n_layers=3)
    config, made = stacked([(a, 0, 2), (b, 1, 3)])
    assert config["layer_types"] == ["full", "sliding"]
    assert made.notes == (f"`layer_types` in config.json is the donor's: {b} doesn't say it of its layer 2",)


def test_nothing_is_said_anew_where_no_layer_moves(make_model) -> None:
    a = make_model("a", n_layers=2, layer_types=["full", "sliding"], max_window_layers=28)
    config, _ = stacked([(a, 0, 1), (a, 1, 2)])
    assert config["layer_types"] == ["full", "sliding"]
    assert config["max_window_layers"] == 28


def test_thresholds_count_the_layers_before_them(make_model) -> None:
    a = make_model("a", n_layers=3, first_k_dense_replace=2, max_window_layers=28)
    config, made = stacked([(a, 0, 2), (a, 1, 3)])
    assert config["first_k_dense_replace"] == 3
    assert config["max_window_layers"] == 4
    assert made.notes == ()


def test_thresholds_that_cannot_tell(make_model) -> None:
    a = make_model("a", n_layers=3, first_k_dense_replace=1)
    _, made = stacked([(a, 1, 3), (a, 0, 3)])
    assert made.notes == (
        "`first_k_dense_replace` in config.json can't describe these layers: layers that are below it in their models "
        "come after others",
    )


def test_an_inferred_model_gets_its_count(make_model, llama) -> None:
    tensors = {name.replace("model.layers", "net.h"): tensor for name, tensor in llama().items()}
    a = make_model("a", tensors, architectures=["NewForCausalLM"])
    config, made = stacked([(a, 0, 2), (a, 0, 1)])
    assert config["num_hidden_layers"] == 3
    assert "net.h.2.mlp.up_proj.weight" in {tensor.name for tensor in made.tensors}
    assert made.notes == ("`NewForCausalLM` is not a known architecture; layers are taken to be `net.h.*`",)


def test_a_count_that_is_nowhere(make_model, llama) -> None:
    tensors = {name.replace("model.layers", "net.h"): tensor for name, tensor in llama().items()}
    a = make_model("a", tensors, architectures=["NewForCausalLM"], num_hidden_layers=None)
    _, made = stacked([(a, 0, 2), (a, 0, 1)])
    assert made.notes[-1] == "nothing in config.json is known to count the 3 layers of default: set it"
