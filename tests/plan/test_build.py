"""Plans: what comes out of a config, and every message where nothing can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergecore import MergeError, PlanError, plan
from mergecore.checkpoint.dtypes import Dtype
from mergecore.plan.plan import ModuleLayers, OutputTensor, Plan
from mergecore.plan.slices import _second_reference


def config(method: str, *models: Path, **rest: Any) -> dict[str, Any]:
    return {"merge_method": method, "models": [{"model": str(m)} for m in models], **rest}


def tensor(made: Plan, name: str) -> OutputTensor:
    return next(t for t in made.tensors if t.name == name)


def weights(made: Plan, name: str) -> tuple[float, ...]:
    params: Any = tensor(made, name).params
    return params.weight


def fails(message: str, source: dict[str, Any], error: type[MergeError] = PlanError, **options: Any) -> None:
    with pytest.raises(error) as caught:
        plan(source, **options)
    assert message in str(caught.value)


def test_tensors_in_the_order_of_the_model(make_model, llama) -> None:
    made = plan(config("linear", make_model("a"), make_model("b"), parameters={"weight": 1}))
    assert [t.name for t in made.tensors] == list(llama())
    assert made.architecture == "LlamaForCausalLM"
    assert made.read_bytes == 2 * sum(t.nbytes for t in llama().values())
    assert made.write_bytes == made.read_bytes // 2 + len(made.shards[0].header)
    assert made.seed is None


def test_shards_are_filled_in_order(make_model, llama) -> None:
    source = config("passthrough", make_model("a"))
    total = sum(t.nbytes for t in llama().values())
    made = plan(source, shard_size=total // 3)
    assert [s.name for s in made.shards] == [
        f"model-{i + 1:05d}-of-{len(made.shards):05d}.safetensors" for i in range(len(made.shards))
    ]
    for i, shard in enumerate(made.shards):
        inside = [t for t in made.tensors if t.shard == i]
        assert sum(t.n_bytes for t in inside) <= total // 3
        assert [t.offset_bytes for t in inside] == sorted(t.offset_bytes for t in inside)
        assert inside[-1].offset_bytes + inside[-1].n_bytes == shard.n_bytes


def test_wider_types_come_first_in_a_file(make_model, llama) -> None:
    tensors = llama(dtype=torch.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    made = plan(config("passthrough", make_model("a", tensors)))
    assert made.tensors[0].name == "model.norm.weight"
    assert made.dtype is Dtype.BF16
    assert all(t.offset_bytes % t.dtype.size == 0 for t in made.tensors)


def test_gradient_runs_over_the_layers_of_a_slice(make_model) -> None:
    a = str(make_model("a", n_layers=5))
    made = plan({"merge_method": "linear", "models": [{"model": a, "parameters": {"weight": [0, 1]}}],
                 "parameters": {"normalize": False}})  # fmt: skip
    name = "model.layers.{}.mlp.up_proj.weight"
    assert [weights(made, name.format(i)) for i in range(5)] == [(0.0,), (0.25,), (0.5,), (0.75,), (1.0,)]
    assert weights(made, "lm_head.weight") == weights(made, "model.embed_tokens.weight") == (0.0,)


def test_layers_are_counted_anew_in_the_output(make_model) -> None:
    a, b = str(make_model("a")), str(make_model("b", seed=1))
    slices = [{"sources": [{"model": a, "layer_range": [0, 2]}]}, {"sources": [{"model": b, "layer_range": [1, 2]}]}]
    made = plan({"merge_method": "passthrough", "slices": slices})
    assert made.layers == (ModuleLayers("default", 3, {"num_hidden_layers": 3}),)
    last = tensor(made, "model.layers.2.mlp.up_proj.weight")
    assert last.inputs[0].tensor_name == "model.layers.1.mlp.up_proj.weight"
    assert [tensor(made, n).inputs[0].model for n in ("model.embed_tokens.weight", "model.norm.weight")] == [0, 1]


def test_base_is_apart_from_the_deltas(make_model) -> None:
    base, a, b = (make_model(name) for name in ("base", "a", "b"))
    made = plan(config("ties", a, base, b, base_model=str(base), parameters={"weight": 1, "density": 0.5}))
    found = made.tensors[0]
    assert [i.model for i in found.inputs] == [0, 2]
    assert found.base is not None
    assert found.base.model == 1
    assert found.measured
    assert made.passes_bytes == 2 * made.read_bytes


def test_nothing_is_measured_where_nothing_is_trimmed(make_model) -> None:
    base, a = make_model("base"), make_model("a")
    made = plan(config("ties", a, base_model=str(base), parameters={"weight": 1, "density": 1}))
    assert not any(t.measured for t in made.tensors)


def test_base_alone_is_copied(make_model) -> None:
    base = make_model("base")
    made = plan(config("ties", base, base_model=str(base), parameters={"weight": 1}))
    assert all(t.method is None and len(t.inputs) == 1 for t in made.tensors)


def test_slerp_without_base_takes_the_first(make_model) -> None:
    made = plan(config("slerp", make_model("a"), make_model("b"), parameters={"t": 0.5}))
    assert made.tensors[0].base_index is None
    assert made.donor == 0


def test_slerp_knows_its_base(make_model) -> None:
    a, b = make_model("a"), make_model("b")
    made = plan(config("slerp", a, b, base_model=str(b), parameters={"t": 0.5}))
    assert made.tensors[0].base_index == 1
    assert made.donor == 1


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), {}, Dtype.BF16),
        ((torch.bfloat16, torch.float16), {}, Dtype.F32),
        ((torch.float32, torch.bfloat16), {"dtype": "bfloat16"}, Dtype.BF16),
        ((torch.float8_e4m3fn, torch.float8_e5m2), {}, Dtype.BF16),
        ((torch.float8_e4m3fn, torch.bfloat16), {}, Dtype.BF16),
        ((torch.float8_e5m2, torch.float16), {}, Dtype.F16),
        ((torch.float8_e4m3fn, torch.float8_e4m3fn), {"out_dtype": "float32"}, Dtype.F32),
        ((torch.bfloat16, torch.bfloat16), {"dtype": "float32", "out_dtype": "float16"}, Dtype.F16),
    ],
)
def test_output_dtype(make_model, stored, wanted, expected) -> None:
    a, b = (make_model(name, dtype=dtype) for name, dtype in zip("ab", stored, strict=True))
    made = plan(config("linear", a, b, parameters={"weight": 1}, **wanted))
    assert {t.dtype for t in made.tensors} == {made.dtype} == {expected}


def test_what_is_float8_in_all_models_is_noted(make_model, llama) -> None:
    a, b = make_model("a", dtype=torch.float8_e4m3fn), make_model("b", dtype=torch.float8_e5m2)
    note = "21 tensors are float8 in all models and are written in bfloat16; `out_dtype` can name another type"
    for source in (config("linear", a, b, parameters={"weight": 1}), config("passthrough", a)):
        assert plan(source).notes == (note,)
        for wanted in ({"dtype": "float16"}, {"out_dtype": "float32"}):
            assert plan(source | wanted).notes == ()
    tensors = llama(dtype=torch.bfloat16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    mixed = plan(config("linear", a, make_model("c", tensors), parameters={"weight": 1}))
    assert mixed.notes == (note.replace("21", "1"),)


def test_float64_is_computed_in_float64(make_model) -> None:
    a, b = make_model("a", dtype=torch.float64), make_model("b")
    made = plan(config("linear", a, b, parameters={"weight": 1}))
    assert all(t.double and t.dtype is Dtype.F64 for t in made.tensors)


def test_tied_heads_are_left_out(make_model, llama) -> None:
    tied = {name: t for name, t in llama().items() if name != "lm_head.weight"}
    made = plan(config("linear", make_model("a", tied), make_model("b", tied), parameters={"weight": 1}))
    assert "lm_head.weight" not in [t.name for t in made.tensors]
    assert made.has_head is False


def test_a_tied_model_gives_its_embeddings_as_head(make_model, llama) -> None:
    tied = {name: t for name, t in llama().items() if name != "lm_head.weight"}
    made = plan(config("linear", make_model("tied", tied), make_model("whole"), parameters={"weight": 1}))
    head = tensor(made, "lm_head.weight")
    assert [i.tensor_name for i in head.inputs] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert made.has_head


def test_optional_tensors_are_merged_from_the_models_that_have_them(make_model, llama) -> None:
    with_bias = llama() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(24)}
    made = plan(config("linear", make_model("a"), make_model("b", with_bias), parameters={"weight": 1}))
    assert [i.model for i in tensor(made, "model.layers.0.self_attn.q_proj.bias").inputs] == [1]


def test_an_optional_tensor_that_only_one_has_is_copied_by_slerp(make_model, llama) -> None:
    with_bias = llama() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(24)}
    made = plan(config("slerp", make_model("a"), make_model("b", with_bias), parameters={"t": 0.5}))
    assert tensor(made, "model.layers.0.self_attn.q_proj.bias").method is None


def test_an_optional_tensor_that_the_base_lacks(make_model, llama) -> None:
    base, a = make_model("base"), make_model("a", llama() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(24)})
    fails(
        "base: lacks the tensor `model.layers.0.self_attn.q_proj.bias`",
        config("ties", a, base_model=str(base), parameters={"weight": 1}),
    )


def test_missing_tensors_are_told_all_at_once(make_model, llama) -> None:
    tensors = llama()
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    source = config("linear", make_model("a"), make_model("b", tensors), parameters={"weight": 1})
    with pytest.raises(PlanError) as caught:
        plan(source)
    assert [p.what for p in caught.value.problems] == [
        "lacks the tensor `model.layers.1.mlp.up_proj.weight`, which the output's "
        "`model.layers.1.mlp.up_proj.weight` is made from",
        "lacks the tensor `model.norm.weight`, which the output's `model.norm.weight` is made from",
    ]
    assert all(p.where.endswith("/b") for p in caught.value.problems)


def test_shape_mismatch_names_both_shapes(make_model, llama) -> None:
    tensors = llama() | {"model.norm.weight": torch.ones(7)}
    a, b = make_model("a"), make_model("b", tensors)
    fails(
        f"`model.norm.weight` has different shapes: [24] in {a}, [7] in {b} "
        "(hint: all models must have the same sizes)",
        config("linear", a, b, parameters={"weight": 1}),
    )


def test_vocabulary_mismatch_has_a_hint_of_its_own(make_model, llama) -> None:
    tensors = llama() | {name: torch.ones(53, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    fails(
        "(hint: add `tokenizer: {source: union}` to merge the vocabularies; --unsafe-truncate-embeddings keeps",
        config("linear", make_model("a"), make_model("b", tensors), parameters={"weight": 1}),
    )


def test_what_many_tensors_lack_is_told_once(make_model) -> None:
    a, empty = make_model("a", n_layers=4), make_model("empty", {}, n_layers=4)
    with pytest.raises(PlanError) as caught:
        plan(config("linear", a, empty, parameters={"weight": 1}))
    (problem,) = caught.value.problems
    likewise = (
        "likewise for `model.layers.0.input_layernorm.weight`, `model.layers.0.self_attn.q_proj.weight` and 35 more"
    )
    assert problem.what == (
        "lacks the tensor `model.embed_tokens.weight`, which the output's `model.embed_tokens.weight` is made from; "
        + likewise
    )


def test_many_problems_are_cut_to_a_screenful(make_model) -> None:
    models = [make_model(m, {f"t{i}": torch.ones(i + 1 + len(m)) for i in range(30)}) for m in ("a", "bb")]
    for model in models:
        (model / "config.json").unlink()
    with pytest.raises(PlanError) as caught:
        plan(config("linear", *models, parameters={"weight": 1}))
    assert len(caught.value.problems) == 21
    assert "more problems like these" in caught.value.problems[-1].what


def test_integers_of_two_types(make_model, llama) -> None:
    a = make_model("a", llama() | {"ids": torch.ones(3, dtype=torch.int64)})
    b = make_model("b", llama() | {"ids": torch.ones(3, dtype=torch.int32)})
    fails(
        f"`ids` is not floating point in all models, so it can't be merged: I64 in {a}, I32 in {b}",
        config("linear", a, b, parameters={"weight": 1}),
    )


def test_layer_range_beyond_the_model(make_model) -> None:
    a = str(make_model("a"))
    fails(
        f"layer_range [0, 3] of {a} is beyond the model, which has 2 layers (hint: the last possible range ends with 2",
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": a, "layer_range": [0, 3]}]}]},
    )


def test_sources_of_different_length(make_model) -> None:
    a, b = str(make_model("a")), str(make_model("b"))
    sources = [{"model": a, "layer_range": [0, 2]}, {"model": b, "layer_range": [0, 1]}]
    fails(
        f"the sources differ in their number of layers: {a} [0, 2], {b} [0, 1]",
        {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}},
    )


def test_models_with_different_layer_counts(make_model) -> None:
    a, b = make_model("a"), make_model("b", n_layers=3)
    fails("the sources differ in their number of layers", config("linear", a, b, parameters={"weight": 1}))


def test_empty_slices_give_no_layers(make_model) -> None:
    a = str(make_model("a"))
    made = plan({"merge_method": "passthrough", "slices": [{"sources": [{"model": a, "layer_range": [1, 1]}]}]})
    assert made.layers[0].n == 0
    assert len(made.tensors) == 3


@pytest.mark.parametrize(
    ("method", "n", "message"),
    [
        ("slerp", 3, "`slerp` takes 2 models, found 3"),
        ("slerp", 1, "`slerp` takes 2 models, found 1"),
        ("passthrough", 2, "`passthrough` takes 1 model, found 2"),
        ("ties", 2, "`ties` needs a `base_model` (hint: name one at the top level)"),
    ],
)
def test_wrong_number_of_models(make_model, method: str, n: int, message: str) -> None:
    models = [make_model(f"m{i}") for i in range(n)]
    fails(message, config(method, *models, parameters={"weight": 1, "t": 0.5}))


def test_base_that_is_no_source(make_model) -> None:
    base, a = str(make_model("base")), str(make_model("a"))
    slices = [{"sources": [{"model": a, "layer_range": [0, 2]}]}]
    fails(
        f"the base model {base} is not a source (hint: list it among the sources, with a layer_range)",
        {"merge_method": "ties", "base_model": base, "slices": slices, "parameters": {"weight": 1}},
    )


def test_the_same_model_twice(make_model) -> None:
    a = make_model("a")
    fails(f"the model {a} is there twice", config("linear", a, a, parameters={"weight": 1}))
    twice = config("linear", a, parameters={"weight": 1})
    twice["models"].append({"model": f"{a}@2"})
    assert len(plan(twice).models) == 2


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("{a}", "{a}@2"), ("{a}@2", "{a}"), ("{a}@other", None),
        ("org/name", "org/name@main"), ("org/name@main", "org/name"), ("org/name+lora", "org/name@main+lora"),
    ],
)  # fmt: skip
def test_how_to_name_a_model_twice(name: str, second: str | None) -> None:
    hint = _second_reference(name.format(a="/models/a"))
    assert hint == (f"if that is meant, write the second one as {second.format(a='/models/a')}" if second else "")


def test_a_model_merged_with_its_own_layers(make_model) -> None:
    a = str(make_model("a"))
    sources = [{"model": a, "layer_range": [0, 1]}, {"model": f"{a}@2", "layer_range": [1, 2]}]
    made = plan({"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}})
    names = [input_.tensor_name for input_ in tensor(made, "model.layers.0.mlp.up_proj.weight").inputs]
    assert names == ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]


def test_filters_see_the_name_of_a_tied_head_not_of_what_it_is_tied_to(make_model, llama) -> None:
    tied = {name: x for name, x in llama().items() if name != "lm_head.weight"}
    a, b = make_model("a"), make_model("b", tied, tie_word_embeddings=True)
    weight = [{"filter": "lm_head", "value": 3}, {"value": 1}]
    made = plan(config("linear", a, b, parameters={"weight": weight, "normalize": False}))
    assert tensor(made, "lm_head.weight").params.weight == (3.0, 3.0)
    assert tensor(made, "model.embed_tokens.weight").params.weight == (1.0, 1.0)


def test_different_architectures(make_model) -> None:
    a, b = make_model("a"), make_model("b", architectures=["MistralForCausalLM"])
    source = config("linear", a, b, parameters={"weight": 1})
    fails(f"the models have different architectures: LlamaForCausalLM in {a}, MistralForCausalLM in {b}", source)
    assert plan(source, allow_crimes=True).architecture == "LlamaForCausalLM"


def test_override_architecture(make_model) -> None:
    a = make_model("a", architectures=["LlamaLikeForCausalLM"])
    entry = {"model": {"model": str(a), "override_architecture": "LlamaForCausalLM"}}
    made = plan({"merge_method": "passthrough", "models": [entry]})
    assert made.donor_config["architectures"] == ["LlamaForCausalLM"]


def test_weights_that_add_up_to_nothing(make_model) -> None:
    a, b = make_model("a"), make_model("b")
    source = config("linear", a, b)
    for entry, weight in zip(source["models"], (1, -1), strict=True):
        entry["parameters"] = {"weight": weight}
    fails("the weights 1, -1 add up to 0, so they can't be normalized; likewise for", source)


def test_unknown_tensors_are_merged_with_a_note(make_model, llama) -> None:
    tensors = llama() | {"model.layers.0.self_attn.sink": torch.ones(2)}
    made = plan(config("linear", make_model("a", tensors), make_model("b", tensors), parameters={"weight": 1}))
    assert tensor(made, "model.layers.0.self_attn.sink").method == "linear"
    assert "are not part of a LlamaForCausalLM and are merged like the others: model.layers.{layer}" in made.notes[0]


def test_seed_is_drawn_only_where_something_is_random(make_model) -> None:
    base, a = make_model("base"), make_model("a")
    dare = config("dare_ties", a, base_model=str(base), parameters={"weight": 1, "density": 0.5})
    assert plan(dare).seed != plan(dare).seed
    assert plan(dare, seed=7).seed == 7
    assert plan(dict(dare, merge_method="ties"), seed=7).seed is None


def test_digest_names_the_merge(make_model) -> None:
    a, b = make_model("a"), make_model("b")

    def digest(weight: float) -> str:
        return plan(config("linear", a, b, parameters={"weight": weight})).digest

    assert digest(1) == digest(1) != digest(2)
