"""Small models to test on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, serve
from hypothesis import settings
from safetensors.torch import save_file
from torch import Tensor

# Triton reads this when it is first imported, and is half-made if it changes later. With it, kernels run on the CPU, in
# an interpreter. What needs the compiler runs in a process of its own, without it.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A first call loads code, and machines are busy at times: how long an example takes says nothing here.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# A shell lets what it starts in the background ignore Ctrl-C, and with it all that is started from there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HIDDEN, KV, MLP, VOCABULARY = 24, 8, 40, 50
MakeModel = Callable[..., Path]


def llama_tensors(n_layers: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors of a small random Llama, in the order of the model."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(n_layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (HIDDEN,),
            layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            layer + "self_attn.k_proj.weight": (KV, HIDDEN),
            layer + "self_attn.v_proj.weight": (KV, HIDDEN),
            layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            layer + "post_attention_layernorm.weight": (HIDDEN,),
            layer + "mlp.gate_proj.weight": (MLP, HIDDEN),
            layer + "mlp.up_proj.weight": (MLP, HIDDEN),
            layer + "mlp.down_proj.weight": (HIDDEN, MLP),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """make_model(name, tensors=None, n_layers=2, shards=1, **config changes) -> the model's folder in tmp_path."""

    def make(
        name: str,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        n_layers: int = 2,
        shards: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        tensors = dict(tensors) if tensors is not None else llama_tensors(n_layers, seed=seed, dtype=dtype)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }
        (folder / "config.json").write_text(json.dumps(config | changes))
        save_sharded(folder, tensors, shards)
        return folder

    return make


def save_sharded(folder: Path, tensors: Mapping[str, Tensor], shards: int) -> None:
    """As transformers saves a model: one file, or several with an index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="session")
def llama() -> Callable[..., dict[str, Tensor]]:
    """llama(n_layers=2, seed=0, dtype=float32) -> the tensors of a small random Llama."""
    return llama_tensors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A HubServer (tests/hub_server.py) in the place of the Hub, with an empty cache in tmp_path / "cache"."""
    yield from serve(monkeypatch, tmp_path / "cache")
