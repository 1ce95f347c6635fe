"""Architectures that nobody has described."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_checkpoints import checkpoint, layers

from mergecore.checkpoint.architecture import LAYER
from mergecore.checkpoint.inference import infer
from mergecore.errors import PlanError

NAME = st.from_regex(r"[a-z]{1,6}(_[a-z]{1,6})?", fullmatch=True)
LOOSE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
LAYER_NAMES = ("self_attn.q_proj.weight", "mlp.up.weight")


def config(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["NewForCausalLM"], "model_type": "new", "num_hidden_layers": 3, **changes}


@given(
    prefixes=st.lists(NAME, min_size=1, max_size=3, unique=True),
    rests=st.lists(st.tuples(NAME, NAME).map(".".join), min_size=1, max_size=4, unique=True),
    loose=st.lists(NAME, max_size=3, unique=True),
    n=st.integers(2, 12),
)
def test_every_tensor_has_one_place(prefixes: list[str], rests: list[str], loose: list[str], n: int) -> None:
    names = [f"loose_{name}.weight" for name in loose]
    for prefix in prefixes:
        names += layers(f"{prefix}.stack", n, *rests)
    model = checkpoint(names, config(num_hidden_layers=n))
    architecture = infer([model])
    assert [m.layers_of(model) for m in architecture.modules if m.prefixes] == [n] * len(prefixes)
    assert [m.name for m in architecture.modules] == (
        ["default"] if len(prefixes) == 1 else [*(f"{prefix}.stack" for prefix in prefixes), "default"]
    )
    written = [
        weight.name.replace(LAYER, str(i))
        for module in architecture.modules
        for weight in module.weights
        for i in range(n if LAYER in weight.name else 1)
    ]
    assert sorted(written) == sorted(names)
    assert not any(weight.optional for module in architecture.modules for weight in module.weights)
    assert architecture.fitted([model]).extra == ()


def test_before_and_after_the_layers() -> None:
    (module,) = infer([checkpoint([*LOOSE, *layers("model.layers", 3, *LAYER_NAMES)], config())]).modules
    assert [weight.name for weight in module.before] == LOOSE[:1]
    assert [weight.name for weight in module.after] == LOOSE[1:]
    assert module.layer_count == ("num_hidden_layers",)


def test_the_count_is_found_by_role() -> None:
    names = [*layers("encoder.block", 4, *LAYER_NAMES), *layers("decoder.block", 4, *LAYER_NAMES)]
    found = infer([checkpoint(names, config(num_layers=4, num_decoder_layers=4, max_window_layers=4))])
    assert [m.layer_count for m in found.modules] == [("num_layers",), ("num_decoder_layers",), ()]
    names = [*layers("model.language_model.layers", 5, *LAYER_NAMES), *layers("model.visual.blocks", 5, *LAYER_NAMES)]
    nested = {"text_config": {"num_hidden_layers": 5}, "vision_config": {"depth": 5}}
    found = infer([checkpoint(names, config(**nested))])
    assert [m.layer_count for m in found.modules] == [("text_config.num_hidden_layers",), ("vision_config.depth",), ()]


def test_experts_and_numbered_parts_are_no_layers() -> None:
    names = [*layers("layers", 3, "mlp.experts.0.w", "mlp.experts.1.w"), "proj.0.weight", "proj.2.weight", "seq.0.x.w"]
    (module,) = infer([checkpoint(names, config())]).modules
    assert [weight.name for weight in module.layer] == [f"layers.{LAYER}.mlp.experts.{e}.w" for e in (0, 1)]
    assert [weight.name for weight in module.before] == names[-3:]


def test_layers_without_a_count_are_known_by_their_tensors() -> None:
    model = checkpoint([*layers("blocks", 4, "attn.q.w"), *layers("mlp", 2, "weight")], config(num_hidden_layers=99))
    (module,) = infer([model]).modules
    assert module.layers_of(model) == 4
    assert module.layer_count == ()
    assert {weight.name for weight in module.before} == {"mlp.0.weight", "mlp.1.weight"}


def test_layers_for_further_tokens_are_loose() -> None:
    model = checkpoint(layers("model.layers", 4, "attn.q.w"), config(num_nextn_predict_layers=1))
    (module,) = infer([model]).modules
    assert module.layers_of(model) == 3
    assert [weight.name for weight in module.before] == ["model.layers.3.attn.q.w"]


def test_what_is_not_everywhere_is_optional() -> None:
    whole = [*LOOSE[:2], *layers("model.layers", 3, *LAYER_NAMES)]
    more = [*whole, "model.layers.1.self_attn.q_proj.bias", "adapter.weight"]
    found = infer([checkpoint(whole, config()), checkpoint(more, config())])
    (module,) = found.modules
    assert found.notes[1] == (
        "2 kinds of tensors are not in all models, and merged from those that have them: adapter.weight, "
        "model.layers.{layer}.self_attn.q_proj.bias"
    )
    assert {weight.name for weight in module.weights if weight.optional} == {
        f"model.layers.{LAYER}.self_attn.q_proj.bias", "adapter.weight",
    }  # fmt: skip


@pytest.mark.parametrize(("tied", "expected"), [(True, LOOSE[:1]), (None, LOOSE[:1]), (False, [])])
def test_a_head_that_one_model_lacks(tied: bool | None, expected: list[str]) -> None:
    names = [*LOOSE, *layers("model.layers", 3, *LAYER_NAMES)]
    without = checkpoint([n for n in names if n != "lm_head.weight"], config(tie_word_embeddings=tied))
    (module,) = infer([without, checkpoint(names, config())]).modules
    head = next(weight for weight in module.after if weight.name == "lm_head.weight")
    assert head.optional
    assert list(head.tied_to) == expected


def test_vocabulary_axis() -> None:
    shapes = {
        "model.embed_tokens.weight": (64, 8),
        "lm_head.weight": (60, 8),
        "lm_head.bias": (60,),
        "wpe.weight": (70, 8),
    }
    names = [*shapes, *layers("model.layers", 3, *LAYER_NAMES)]
    (module,) = infer([checkpoint(names, config(vocab_size=60), shapes)]).modules
    axes = {weight.name: weight.vocabulary_axis for weight in module.before + module.after}
    assert axes == {"model.embed_tokens.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0, "wpe.weight": None}


def test_models_of_different_structure() -> None:
    one = checkpoint(layers("model.layers", 3, *LAYER_NAMES), config())
    other = checkpoint(layers("transformer.h", 3, *LAYER_NAMES), config())
    with pytest.raises(PlanError) as caught:
        infer([one, other])
    assert "model: has layers `transformer.h.*`, but model has `model.layers.*` (hint: --allow-crimes" in str(
        caught.value
    )


def test_models_may_differ_in_their_number_of_layers() -> None:
    models = [checkpoint(layers("model.layers", n, *LAYER_NAMES), config(num_hidden_layers=n)) for n in (3, 5)]
    (module,) = infer(models).modules
    assert [module.layers_of(model) for model in models] == [3, 5]
    assert not any(weight.optional for weight in module.layer)
