"""The definitions in `architectures/`: each can be read, and is what a model made of its tensors is taken for."""

from __future__ import annotations

from importlib import resources

import pytest
from synthetic_checkpoints import N_LAYERS, model_of, names_of

from mergecore.checkpoint.architecture import AFTER, LAYER, Architecture
from mergecore.checkpoint.definitions import _expanded, definitions
from mergecore.checkpoint.recognition import recognize

ALL = [architecture for found in definitions().values() for architecture in found]


def label(architecture: Architecture) -> str:
    return f"{architecture.definition[0]}-{architecture.name}"


def test_every_file_is_read() -> None:
    folder = resources.files("mergecore.checkpoint") / "architectures"
    files = {file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")}
    assert files == {architecture.definition[0] for architecture in ALL}


@pytest.mark.parametrize("architecture", ALL, ids=label)
def test_names_are_sound(architecture: Architecture) -> None:
    weights = [weight for module in architecture.modules for weight in module.weights]
    names = [weight.name for weight in weights]
    assert len(set(names)) == len(names)
    known = set(names) | {alias for weight in weights for alias in weight.aliases}
    assert all(tied in known for weight in weights for tied in weight.tied_to)
    assert any(weight.vocabulary_axis == 0 for weight in weights)
    for module in architecture.modules:
        assert all(weight.name.startswith(module.prefixes) for weight in module.layer)
        assert not any(LAYER in weight.name for weight in module.before + module.after)
        assert not any(AFTER in weight.name for weight in module.before + module.layer)
    assert not [name for name in names if "?" in name or "," in name or ".." in name]


@pytest.mark.parametrize("architecture", ALL, ids=label)
def test_a_model_of_its_tensors_is_recognized(architecture: Architecture) -> None:
    model = model_of(architecture)
    found = recognize(model)
    assert found.definition == architecture.definition
    assert [m.name for m in found.modules] == [m.name for m in architecture.modules]
    assert [m.layers_of(model) for m in found.modules] == [N_LAYERS if m.prefixes else 0 for m in found.modules]
    fitted = found.fitted([model])
    assert fitted.extra == ()
    written = {name for module in fitted.modules for name in names_of(module)}
    assert written == model.tensors.keys()


def test_braces_and_question_marks() -> None:
    assert list(_expanded("a.{b,c}_d.{weight,bias?}")) == ["a.b_d.weight", "a.b_d.bias?", "a.c_d.weight", "a.c_d.bias?"]
    assert list(_expanded("{layer}.{x?,y}.w")) == ["{layer}.x.w?", "{layer}.y.w"]


def find(name: str, weight: str):
    (architecture,) = definitions()[name]
    return next(w for module in architecture.modules for w in module.weights if w.name == weight)


def test_aliases_are_combined() -> None:
    weight = find("BertModel", "embeddings.LayerNorm.weight")
    assert set(weight.aliases) == {
        "embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma",
    }  # fmt: skip
    assert find("GPT2LMHeadModel", "transformer.h.{layer}.ln_1.bias").aliases == ("h.{layer}.ln_1.bias",)


def test_layouts_know_each_other() -> None:
    hub, *others = definitions()["Gemma3ForConditionalGeneration"]
    patch = [next(w for w in a.modules[2].before if w.name.endswith("patch_embedding.weight")) for a in (hub, *others)]
    assert patch[0].name == "vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert all({w.name, *w.aliases} == {patch[0].name, *patch[0].aliases} for w in patch)
    assert all(other == hub for other in others)


def test_classes_of_one_file_differ_by_their_heads() -> None:
    (causal,), (classifier,) = definitions()["LlamaForCausalLM"], definitions()["LlamaForSequenceClassification"]
    assert causal != classifier
    assert causal == definitions()["LLaMaForCausalLM"][0]
    assert causal != definitions()["MistralForCausalLM"][0]
