"""Models whose layers are numbered from 1 on, as those of phi-1: `layers.0` is the embedding, the head comes last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from synthetic_checkpoints import checkpoint

from mergecore import PlanError, merge, plan
from mergecore.checkpoint.definitions import definitions
from mergecore.checkpoint.recognition import recognize
from mergecore.plan.embeddings import vocabulary_sizes

HIDDEN, VOCABULARY = 4, 6
PHI = {"architectures": ["MixFormerSequentialForCausalLM"], "model_type": "mixformer-sequential"}


def shapes(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a model, in its order."""
    found: dict[str, tuple[int, ...]] = {"layers.0.wte.weight": (VOCABULARY, HIDDEN)}
    for i in range(1, n_layers + 1):
        found |= {f"layers.{i}.ln.{part}": (HIDDEN,) for part in ("weight", "bias")}
        found[f"layers.{i}.mixer.rotary_emb.inv_freq"] = (2,)
        for name, rows, columns in (
            ("mixer.Wqkv", 3 * HIDDEN, HIDDEN), ("mixer.out_proj", HIDDEN, HIDDEN), ("mlp.fc1", 8, HIDDEN),
            ("mlp.fc2", HIDDEN, 8),
        ):  # fmt: skip
            found |= {f"layers.{i}.{name}.weight": (rows, columns), f"layers.{i}.{name}.bias": (rows,)}
    head = f"layers.{n_layers + 1}."
    found |= {head + "ln.weight": (HIDDEN,), head + "ln.bias": (HIDDEN,)}
    return found | {head + "linear.weight": (VOCABULARY, HIDDEN), head + "linear.bias": (VOCABULARY,)}


@pytest.fixture
def phi(make_model):
    def make(name: str, n_layers: int) -> Path:
        generator = torch.Generator().manual_seed(len(name))
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes(n_layers).items()}
        return make_model(name, tensors, **PHI, num_hidden_layers=None, n_layer=n_layers)

    return make


def passthrough(*sources: tuple[Path, list[int]]) -> dict[str, Any]:
    slices = [{"sources": [{"model": str(model), "layer_range": layers}]} for model, layers in sources]
    return {"merge_method": "passthrough", "slices": slices}


def test_merged_whole(phi, tmp_path: Path) -> None:
    a, b = phi("a", 2), phi("bb", 2)
    out = tmp_path / "out"
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in (a, b)]
    merge({"merge_method": "linear", "models": models}, out, workers=0)
    one, other = (load_file(model / "model.safetensors") for model in (a, b))
    found = load_file(out / "model.safetensors")
    assert found.keys() == shapes(2).keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2, msg=name)
    assert json.loads((out / "config.json").read_text())["n_layer"] == 2


def test_stacked_layers_are_renumbered(phi, tmp_path: Path) -> None:
    a, b = phi("a", 2), phi("bb", 3)
    out = tmp_path / "out"
    merge(passthrough((a, [0, 2]), (b, [1, 3])), out, workers=0)
    one, other = (load_file(model / "model.safetensors") for model in (a, b))
    found = load_file(out / "model.safetensors")
    assert found.keys() == shapes(4).keys()
    came_from = {0: (one, 0), 1: (one, 1), 2: (one, 2), 3: (other, 2), 4: (other, 3), 5: (other, 4)}
    for name, tensor in found.items():
        _, number, rest = name.split(".", 2)
        model, there = came_from[int(number)]
        assert torch.equal(tensor, model[f"layers.{there}.{rest}"]), name
    assert json.loads((out / "config.json").read_text())["n_layer"] == 4


def test_gradients_run_over_the_layers(phi) -> None:
    models = [{"model": str(phi("a", 3)), "parameters": {"weight": [1, 3]}}]
    made = plan({"merge_method": "linear", "models": models, "parameters": {"normalize": False}})
    weights = {t.name: t.params.weight[0] for t in made.tensors if t.name.endswith(("ln.weight", "wte.weight"))}
    assert weights == {
        "layers.0.wte.weight": 1, "layers.1.ln.weight": 1, "layers.2.ln.weight": 2, "layers.3.ln.weight": 3,
        "layers.4.ln.weight": 1,
    }  # fmt: skip


def test_a_range_beyond_the_model(phi) -> None:
    with pytest.raises(PlanError, match=r"layer_range \[1, 4\] of \S+ is beyond the model, which has 3 layers"):
        plan(passthrough((phi("a", 3), [1, 4])))


def test_layers_are_counted_by_names_where_the_config_does_not_say_it() -> None:
    model = checkpoint(shapes(3), PHI)
    architecture = recognize(model)
    assert architecture.modules[0].layers_of(model) == 3
    assert architecture.fitted([model]).extra == ()


def test_unknown_tensors_of_a_layer() -> None:
    model = checkpoint([*shapes(2), "layers.2.mixer.sink", "layers.7.odd"], {**PHI, "n_layer": 2})
    (module,) = recognize(model).fitted([model]).modules
    assert module.layer[-1].name == "layers.{layer}.mixer.sink"
    assert module.before[-1].name == "layers.7.odd"


def test_rows_of_tokens_behind_different_numbers_of_layers() -> None:
    (architecture,) = definitions()["MixFormerSequentialForCausalLM"]
    models = [
        checkpoint(shapes(n), PHI, {**shapes(n), f"layers.{n + 1}.linear.bias": (rows,)})
        for n, rows in ((2, 5), (3, 6))
    ]
    assert vocabulary_sizes(architecture, models, "config") == [5, 6]
