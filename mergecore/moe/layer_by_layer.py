"""Runs a model with one of its layers in memory at a time.

transformers has the mathematics of each kind of model. For each layer a model of that layer alone is made, which gets
its weights from the checkpoint. It has no embeddings and no norm at its end: it takes what the layer before it gave.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mergecore.checkpoint.checkpoint import CONFIG_FILE
from mergecore.errors import CheckpointError, EvaluationError
from mergecore.evaluation.loading import first_line, not_installed
from mergecore.moe.stored_weights import StoredWeights

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type`s that can be run so: their layers need nothing but the states and what config.json says."""


class LayerByLayer:
    """A model on a device. Its weights are read when they are needed, and converted to `dtype`."""

    def __init__(self, weights: StoredWeights, *, dtype: torch.dtype, device: str) -> None:
        """Raises CheckpointError and EvaluationError."""
        self.device = device
        self.dtype = dtype
        self._weights = weights
        self._transformers = _transformers()
        self._config = self._read_config()
        self.layers: int = self._config.num_hidden_layers
        self.hidden_size: int = self._config.hidden_size

    def embeddings(self, tokens: Sequence[int]) -> Tensor:
        """[tokens, hidden] Raises CheckpointError."""
        return self._weights.embeddings(tokens, self.hidden_size).to(self.device).to(self.dtype)

    def layer(self, number: int) -> Layer:
        """One of the layers, with its weights. Raises CheckpointError."""
        config = copy.deepcopy(self._config)
        with self._translated_errors():
            config.num_hidden_layers = 1
            if getattr(config, "layer_types", None):
                config.layer_types = [config.layer_types[number]]
            with torch.device("meta"):
                network = self._transformers.AutoModel.from_config(config, trust_remote_code=False)
            rotary = type(network.rotary_emb)(config)  # no weight, so it has to be computed
        network.norm = nn.Identity()
        network.rotary_emb = rotary.to(self.device)
        weights = {
            name: self._weights.tensor(f"model.layers.{number}.{name}", parameter.shape).to(self.device).to(self.dtype)
            for name, parameter in network.layers[0].state_dict().items()
        }
        network.layers[0].load_state_dict(weights, assign=True)
        return Layer(network.eval())

    def _read_config(self) -> Any:
        folder = self._weights.folder
        with self._translated_errors():
            config = self._transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        if config.model_type not in KINDS:
            what = f"the states of a model are known for the types {', '.join(KINDS)}, and this is {config.model_type}"
            raise EvaluationError.at(folder, what, "take a `gate_mode` that runs no model, such as `cheap_embed`")
        return config

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """What transformers says of a config, as a CheckpointError."""
        try:
            yield
        except Exception as error:  # of all kinds: each class checks its config in its own way
            where = self._weights.folder / CONFIG_FILE
            raise CheckpointError.at(where, f"transformers can't make a model of it: {first_line(error)}") from error


class Layer:
    """A model of a single layer."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, states: Tensor, is_token: Tensor) -> Tensor:
        """What the layer makes of texts. `is_token` is False for padding, which no token sees.

        Shapes: [texts, longest, hidden], [texts, longest] -> [texts, longest, hidden].
        """
        output = self._network(inputs_embeds=states, attention_mask=is_token, use_cache=False)
        after: Tensor = output.last_hidden_state
        return after


def _transformers() -> Any:
    """The library, which takes seconds to import. Its types don't fit its functions, hence the Any."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise not_installed("running the base model to find the gates", error) from error
