"""Gates from prompts: what they are made of, on the quick start's base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore.config.mixture import GateMode
from mergecore.errors import CheckpointError
from mergecore.moe.gates import ExpertPrompts, gate_vectors, ill_conditioned_layers
from mergecore.moe.prompt_tokens import PromptTokenizer
from mergecore.stream.reader import Files

BASE = Path(__file__).parents[2] / "configs/quickstart/base"
LAYERS, HIDDEN = 6, 160
SUMS = ("12+34=", "90-17=")
PROSE = ("The following section describes", "An expression is")
CODE = ("def __init__(self", "import os")
EXPERTS = (ExpertPrompts(SUMS), ExpertPrompts(PROSE, CODE), ExpertPrompts(CODE, (SUMS[0],)))


def gates_of(mode: GateMode, experts: tuple[ExpertPrompts, ...] = EXPERTS, base: Path = BASE, seed: int = 0) -> Tensor:
    dtype = torch.float32
    return gate_vectors(mode, base, experts, layers=LAYERS, hidden_size=HIDDEN, seed=seed, dtype=dtype)


def embeddings() -> np.ndarray:
    """float64 [tokens, hidden]"""
    found = {name: t for file in BASE.glob("*.safetensors") for name, t in load_file(file).items()}
    return found["model.embed_tokens.weight"].double().numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_cheap_embed() -> None:
    rows, tokenizer = embeddings(), PromptTokenizer(BASE)

    def summed(prompts: tuple[str, ...]) -> np.ndarray:
        return unit(sum(rows[token] for prompt in prompts for token in tokenizer.tokens(prompt)))

    gates = gates_of("cheap_embed")
    assert gates.dtype is torch.float32
    assert gates.shape == (LAYERS, 3, HIDDEN)
    want = [summed(e.positive) if not e.negative else unit(summed(e.positive) - summed(e.negative)) for e in EXPERTS]
    for layer in gates.double().numpy():
        assert np.abs(layer - np.array(want)).max() < 2**-24


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
def test_states_of_the_first_layer_are_embeddings(mode: GateMode) -> None:
    """Where they can be told without running the model."""
    pytest.importorskip("transformers")
    rows, tokenizer = embeddings(), PromptTokenizer(BASE)

    def mean(prompts: tuple[str, ...]) -> np.ndarray:
        tokens = [list(tokenizer.tokens(prompt)) for prompt in prompts]
        return np.mean([rows[t[-1]] if mode == "hidden" else rows[t].mean(axis=0) for t in tokens], axis=0)

    want = [unit(mean(e.positive) - mean(e.negative)) if e.negative else unit(mean(e.positive)) for e in EXPERTS]
    assert np.abs(gates_of(mode)[0].numpy() - np.array(want)).max() < 1e-6


def test_hidden_gates_tell_domains_apart() -> None:
    """In each layer after the first, the gate of a domain is the nearest to another prompt of it."""
    pytest.importorskip("transformers")
    experts = tuple(map(ExpertPrompts, (SUMS, PROSE, CODE)))
    others = tuple(ExpertPrompts((prompt,)) for prompt in ("55+21=", "The value of this is", "def __repr__(self"))
    scores = torch.einsum("leh,lph->lpe", gates_of("hidden", experts), gates_of("hidden", others))
    assert scores[1:].argmax(dim=-1).tolist() == [[0, 1, 2]] * (LAYERS - 1)


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_gates_have_length_1_or_0(mode: GateMode) -> None:
    if mode != "cheap_embed":
        pytest.importorskip("transformers")
    gates = gates_of(mode, (*EXPERTS, ExpertPrompts(SUMS, SUMS)))
    lengths = gates.double().norm(dim=-1)
    assert (lengths[:, :3] - 1).abs().max() < 1e-6
    assert not lengths[:, 3].any()


def test_default_precision_is_that_of_mergekit() -> None:
    pytest.importorskip("transformers")
    gates = gate_vectors("hidden", BASE, EXPERTS, layers=LAYERS, hidden_size=HIDDEN, seed=0)
    assert gates.dtype is torch.float32
    assert torch.equal(gates, gates.bfloat16().float())
    assert 1e-4 < (gates - gates_of("hidden")).abs().max() < 0.02


def test_seed_is_that_of_drawn_gates() -> None:
    for mode in ("random", "uniform_random"):
        assert torch.equal(gates_of(mode), gates_of(mode))
        assert not torch.equal(gates_of(mode), gates_of(mode, seed=1))
    assert torch.equal(gates_of("cheap_embed"), gates_of("cheap_embed", seed=1))


def test_drawn_gates_need_neither_model_nor_prompts(tmp_path: Path) -> None:
    gates = gates_of("random", (ExpertPrompts(()),) * 3, base=tmp_path / "missing")
    assert torch.equal(gates, gates_of("random"))


def test_cheap_embed_reads_only_the_rows_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = 0
    read = Files.read

    def counted(self: Files, path: str, offset_bytes: int, into: memoryview) -> None:
        nonlocal n_bytes
        n_bytes += len(into)
        read(self, path, offset_bytes, into)

    monkeypatch.setattr(Files, "read", counted)
    gates_of("cheap_embed", (ExpertPrompts(SUMS),))
    tokens = {token for prompt in SUMS for token in PromptTokenizer(BASE).tokens(prompt)}
    gap = 1024  # that is read along, between two rows
    assert 0 < n_bytes <= len(tokens) * (HIDDEN * 2 + gap)


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed"])
def test_weights_that_are_not_numbers(mode: GateMode, tmp_path: Path) -> None:
    if mode == "hidden":
        pytest.importorskip("transformers")
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    for file in base.glob("*.safetensors"):
        tensors = load_file(file)
        tensors = {
            name: t.fill_(torch.nan) if "embed" in name or "layers.2.mlp" in name else t for name, t in tensors.items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        gates_of(mode, base=base)
    assert str(caught.value) == (
        f"{base}: the gate of expert 0 in layer 0 has values that are NaN or infinite "
        "(hint: the weights of the base model may be damaged)"
    )


def test_ill_conditioned_layers() -> None:
    gates = torch.eye(3, 8).repeat(4, 1, 1)
    gates[1, 1] = gates[1, 0] + 0.1 * gates[1, 1]  # nearly the same
    gates[3, 2] = 0.0
    assert ill_conditioned_layers(gates) == (1, 3)
    assert ill_conditioned_layers(gates, most=100.0) == (3,)
