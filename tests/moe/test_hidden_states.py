"""The states that enter the layers are those of the whole model, and only one layer is in memory at a time."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mergecore.errors import CheckpointError, EvaluationError, MergeError
from mergecore.moe import hidden_states
from mergecore.moe.hidden_states import mean_states
from mergecore.moe.layer_by_layer import KINDS, Layer, LayerByLayer
from mergecore.moe.stored_weights import StoredWeights

transformers = pytest.importorskip("transformers")

LAYERS, HIDDEN, VOCABULARY = 4, 32, 40
LISTS = [[(0, 5, 9, 12), (0, 7), (0, 3, 39, 3, 8, 30, 2)], [], [(11, 2, 0), (5,)]]
DIFFERENCES = {
    "mistral": {"sliding_window": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},  # two kinds of layers
}


def make_model(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """A small random model, of numbers so large that each layer changes the states much."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.AutoConfig.for_model(
        kind, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, head_dim=8, **sizes, **DIFFERENCES.get(kind, {})
    )
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    network.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """models("llama") -> the folder of a model of that kind."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: root / kind if (root / kind).exists() else make_model(root / kind, kind)


def runner(folder: Path, dtype: torch.dtype = torch.float32) -> LayerByLayer:
    return LayerByLayer(StoredWeights(open_checkpoint(folder)), dtype=dtype, device="cpu")


def whole_model(folder: Path, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function from inputs of the model to [layers, prompts, longest, hidden], the states that enter each layer."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def states(**inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack(network(**inputs, output_hidden_states=True).hidden_states[:-1])

    return states


@pytest.mark.parametrize("of_prompt", ["last", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_each_prompt_alone(kind: str, of_prompt: Any, models: Callable[[str], Path]) -> None:
    """No token sees the padding of its batch."""
    states = whole_model(models(kind), torch.float32)
    want = torch.zeros(LAYERS, len(LISTS), HIDDEN)
    for number, prompts in enumerate(LISTS):
        for prompt in prompts:
            found = states(input_ids=torch.tensor([prompt]))[:, 0]
            want[:, number] += (found[:, -1] if of_prompt == "last" else found.mean(dim=1)) / len(prompts)
    got = mean_states(LISTS, runner(models(kind)), of_prompt)
    assert got.dtype is torch.float32
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (got[:-1, 0] - got[1:, 0]).abs().amin(dim=0).max() > 1e-2  # layers do differ


@pytest.mark.parametrize("kind", KINDS)
def test_bits_in_bfloat16_are_those_of_a_batch_padded_at_its_beginning(
    kind: str, models: Callable[[str], Path]
) -> None:
    """That is what mergekit runs. Its mean is rounded after the sum and after the division."""
    prompts = LISTS[0]
    padded = torch.tensor([[1] * (7 - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (7 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    states = whole_model(models(kind), torch.bfloat16)(input_ids=padded, attention_mask=mask)
    got = mean_states([prompts], runner(models(kind), torch.bfloat16), "last")
    assert got.dtype is torch.bfloat16
    assert torch.equal(got[:, 0], states[:, :, -1].sum(dim=1) / 3)


@pytest.mark.parametrize(("batch_tokens", "passes"), [(1, 5), (14, 1)])
def test_small_batches_and_several_passes(
    batch_tokens: int, passes: int, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = mean_states(LISTS, runner(models("qwen2")), "last")
    monkeypatch.setattr(hidden_states, "BATCH_TOKENS", batch_tokens)
    if passes > 1:
        monkeypatch.setattr(hidden_states, "STATE_BYTES", 1)
    told: list[tuple[int, int]] = []
    got = mean_states(LISTS, runner(models("qwen2")), "last", lambda *numbers: told.append(numbers))
    assert told == [(done + 1, passes * LAYERS) for done in range(passes * LAYERS)]
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


class WatchedWeights(StoredWeights):
    """Notes what is read."""

    def __init__(self, model: Checkpoint) -> None:
        super().__init__(model)
        self.read: list[str] = []

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        self.read.append(name)
        return super().tensor(name, shape)


class WatchedModel(LayerByLayer):
    """Notes the weights of layers, and whether any are still in memory when another layer is wanted."""

    def layer(self, number: int) -> Layer:
        self.seen: list[weakref.ref[Tensor]] = getattr(self, "seen", [])
        assert not [ref for ref in self.seen if ref() is not None]
        layer = super().layer(number)
        self.seen += map(weakref.ref, layer._network.layers[0].parameters())
        return layer


def test_one_layer_is_in_memory(models: Callable[[str], Path]) -> None:
    """What nothing looks at is never read: the last layer, what follows it, and the embeddings as a whole."""
    weights = WatchedWeights(open_checkpoint(models("qwen3")))
    model = WatchedModel(weights, dtype=torch.float32, device="cpu")
    mean_states(LISTS, model, "last")
    of_layer = [name for name in weights.read if name.startswith("model.layers.0.")]
    assert len(of_layer) == 11
    assert weights.read == [name.replace(".0.", f".{i}.") for i in range(LAYERS - 1) for name in of_layer]
    assert len(model.seen) == len(weights.read)


# What is wrong.


def edited(folder: Path, change: Callable[[dict[str, Tensor]], object], **config: Any) -> Path:
    """A model whose weights and config were changed."""
    make_model(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return folder


def complaint(folder: Path, error: type[MergeError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        mean_states(LISTS, runner(folder), "last")
    return str(caught.value)


def test_missing_weight(tmp_path: Path) -> None:
    model = edited(tmp_path, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    assert complaint(model) == (
        f"{model}: lacks the tensor `model.layers.2.mlp.up_proj.weight`, which config.json calls for"
    )


def test_weight_of_another_shape(tmp_path: Path) -> None:
    model = edited(tmp_path, lambda tensors: None, intermediate_size=50)
    assert complaint(model) == (
        f"{model}: `model.layers.0.mlp.gate_proj.weight` is [48, 32], by config.json it should be [50, 32]"
    )


def test_embeddings_of_another_size(tmp_path: Path) -> None:
    model = edited(tmp_path, lambda tensors: None, hidden_size=64)
    assert complaint(model) == (
        f"{model}: `model.embed_tokens.weight` is [40, 32], by config.json it should have 64 columns"
    )


def test_token_without_an_embedding(tmp_path: Path) -> None:
    def shorten(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:39].clone()

    model = edited(tmp_path, shorten)
    assert complaint(model) == (
        f"{model}: its tokenizer gives token 39, but `model.embed_tokens.weight` has 39 rows "
        "(hint: use the tokenizer that the weights were trained with)"
    )


def test_model_of_another_type(tmp_path: Path) -> None:
    model = edited(tmp_path, lambda tensors: None, model_type="gemma")
    assert complaint(model, EvaluationError) == (
        f"{model}: the states of a model are known for the types llama, mistral, qwen2, qwen3, and this is gemma "
        "(hint: take a `gate_mode` that runs no model, such as `cheap_embed`)"
    )


@pytest.mark.parametrize(
    "changes", [{"model_type": "lama"}, {"rms_norm_eps": "small"}, {"hidden_act": "sillu"}, {"num_attention_heads": 0}]
)
def test_config_that_transformers_can_not_use(changes: dict[str, Any], tmp_path: Path) -> None:
    model = edited(tmp_path, lambda tensors: None, **changes)
    found = complaint(model)
    assert found.startswith(f"{model / 'config.json'}: transformers can't make a model of it: ")
    assert "\n" not in found


def test_code_of_the_model_is_not_run(tmp_path: Path) -> None:
    """Not even asked for, where transformers knows the model itself."""
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"}
    model = edited(tmp_path, lambda tensors: None, auto_map=classes)
    (model / "code.py").write_text("raise SystemExit('was run')")
    assert mean_states(LISTS, runner(model), "last").shape == (LAYERS, len(LISTS), HIDDEN)


def test_transformers_is_missing(monkeypatch: pytest.MonkeyPatch, models: Callable[[str], Path]) -> None:
    model = models("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert complaint(model, EvaluationError) == (
        "running the base model to find the gates needs transformers, which is not installed "
        "(hint: pip install 'mergecore-triton[eval]')"
    )
