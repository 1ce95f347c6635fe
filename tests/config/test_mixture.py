"""Configs for mixtures of experts: what they hold, and what users read when they are wrong."""

from __future__ import annotations

import pytest

from mergecore.config import load
from mergecore.config.mixture import MixtureConfig, matching

EXPERTS = "experts:\n- source_model: b\n  positive_prompts: [x]\n- source_model: c\n  positive_prompts: [y]\n"
MIXTURE = "base_model: a\n" + EXPERTS
RANDOM = "base_model: a\ngate_mode: random\nexperts:\n- source_model: b\n- source_model: c\n"
MODES = "hidden, hidden_avg, cheap_embed, random, uniform_random"


@pytest.mark.parametrize("head", ["", "merge_method: moe\n"])
def test_defaults(read, head) -> None:
    config = read(head + MIXTURE)
    assert isinstance(config, MixtureConfig)
    assert (config.merge_method, config.gate_mode, config.experts_per_token) == ("moe", "hidden", 2)
    assert (config.dtype, config.architecture, config.expert_layout) == (None, None, "separate")
    assert config.shared_experts == ()
    first, second = config.experts
    assert str(first.source_model) == "b"
    assert second.positive_prompts == ("y",)
    assert (first.negative_prompts, first.noise_scale, first.residual_scale) == ((), 0.0, 1.0)
    assert not config.warnings


def test_what_is_resolved_can_be_loaded_again(read) -> None:
    config = read(MIXTURE + "shared_experts: [{source_model: d, residual_scale: 0.5}]\ndtype: bfloat16\n")
    assert load(config.resolved()) == config


@pytest.mark.parametrize(
    ("beginning", "names"),
    [
        ("mix", ["Mixtral"]),
        ("QWEN", ["Qwen MoE", "Qwen3 MoE"]),
        ("qwen3 moe", ["Qwen3 MoE"]),
        ("", ["Mixtral", "DeepSeek MoE", "Qwen MoE", "Qwen3 MoE"]),
    ],
)
def test_the_beginning_of_an_architecture_is_enough(beginning, names) -> None:
    assert list(matching(beginning)) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: moe\nbase_model: a\n", "merge.yml: `experts` is missing"),
        ("merge_method: moe\n" + EXPERTS, "merge.yml: `base_model` is missing"),
        ("base_model: a\nexperts: []\n", "merge.yml:2: there are no experts"),
        ("base_model: a\nexperts: b\n", "merge.yml:2: experts: expected a list, found 'b'"),
        (
            "merge_method: moe\nbase_model: a\nexpert:\n- source_model: b\n",
            "merge.yml:3: `expert` is not a key of a config for a mixture of experts (hint: did you mean `experts`?)",
        ),
        (
            "merge_method: ties\n" + MIXTURE,
            "merge.yml:1: merge_method: 'ties' merges models and takes no `experts` "
            "(hint: write `moe`, or leave it out)",
        ),
        (
            RANDOM + "- source_mode: d\n",
            "merge.yml:6: `source_mode` is not a key of an expert (hint: did you mean `source_model`?)",
        ),
        (
            RANDOM + "- source_model: d\n  noise_scal: 1\n",
            "merge.yml:7: `noise_scal` is not a key of an expert (hint: did you mean `noise_scale`?)",
        ),
        (
            MIXTURE + "gate_mode: hiden\n",
            "merge.yml:7: gate_mode: 'hiden' is not a mode for gates (hint: did you mean `hidden`?)",
        ),
        (
            MIXTURE + "gate_mode: 3\n",
            f"merge.yml:7: gate_mode: 3 is not a mode for gates (hint: expected one of {MODES})",
        ),
        (
            MIXTURE + "architecture: mixtrall\n",
            "merge.yml:7: architecture: 'mixtrall' is not the kind of mixture that can be written "
            "(hint: did you mean `Mixtral`?)",
        ),
        (
            MIXTURE + "expert_layout: stack\n",
            "merge.yml:7: expert_layout: 'stack' is not a layout of experts (hint: did you mean `stacked`?)",
        ),
        (
            MIXTURE + "experts_per_token: 0\n",
            "merge.yml:7: experts_per_token: expected a whole number from 1 on, found 0",
        ),
        (
            MIXTURE + "experts_per_token: 3\n",
            "merge.yml:7: `experts_per_token` is 3, but the number of experts is 2 (hint: write 2, or less)",
        ),
        (
            RANDOM + "  noise_scale: abc\n",
            "merge.yml:6: noise_scale: expected a number, found 'abc'",
        ),
        (
            RANDOM + "  residual_scale: .inf\n",
            "merge.yml:6: residual_scale: expected a finite number, found inf",
        ),
        (
            RANDOM + "  positive_prompts: x\n",
            "merge.yml:6: positive_prompts: expected a list of texts, found 'x' "
            "(hint: write each text in quotes, after a `-`)",
        ),
        (
            RANDOM + "  positive_prompts: [1]\n",
            "merge.yml:6: positive_prompts: expected a list of texts, found a list "
            "(hint: write each text in quotes, after a `-`)",
        ),
        (
            MIXTURE + "- source_model: d\n",
            "merge.yml:7: `positive_prompts` of experts[2] is missing: the gates of mode `hidden` are made from them "
            "(hint: or take one of the modes random, uniform_random)",
        ),
        (
            MIXTURE + "shared_experts:\n- {source_model: d, positive_prompts: [z]}\n- source_model: d\n",
            "merge.yml:9: `positive_prompts` of shared_experts[1] is missing: the gates of mode `hidden` are made from "
            "them (hint: or take one of the modes random, uniform_random)",
        ),
        (
            MIXTURE.replace("[y]", "[x]"),
            "merge.yml:2: all experts have the same prompts, so their gates would be equal",
        ),
    ],
)
def test_one_problem(complaints, text, message) -> None:
    assert complaints(text) == [message]


def test_a_single_expert_is_too_few_for_two_per_token(complaints) -> None:
    (line,) = complaints("base_model: a\ngate_mode: random\nexperts:\n- source_model: b\n")
    assert line == "merge.yml:3: `experts_per_token` is 2, but the number of experts is 1 (hint: write 1, or less)"


@pytest.mark.parametrize(("name", "mode"), [("hidden_last", "hidden"), ("uniform", "uniform_random")])
def test_other_names_of_modes(read, name, mode) -> None:
    experts = "[{source_model: b, positive_prompts: [p]}, {source_model: c, positive_prompts: [q]}]"
    assert read(f"base_model: a\ngate_mode: {name}\nexperts: {experts}\n").gate_mode == mode


@pytest.mark.parametrize("mode", ["random", "uniform_random", "uniform"])
def test_random_gates_need_no_prompts(read, mode) -> None:
    assert read(RANDOM.replace("random", mode)).is_random


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("models: []", "the models of a mixture are its `experts`"),
        ("tokenizer: {source: union}", "the tokenizer is that of the base model"),
        ("out_dtype: float16", "`dtype` is the type of the tensors that are written"),
        ("frobnicate: 1", ""),
    ],
)
def test_what_has_no_effect_is_a_warning(read, line, hint) -> None:
    (warning,) = read(MIXTURE + line + "\n").warnings
    key = line.partition(":")[0]
    assert str(warning) == f"merge.yml:7: `{key}` is not a key of a config for a mixture of experts and has no effect"
    assert warning.hint == hint


def test_warnings_are_errors_if_asked_for(complaints) -> None:
    (line,) = complaints(MIXTURE + "models: []\n", strict=True)
    assert "has no effect" in line
