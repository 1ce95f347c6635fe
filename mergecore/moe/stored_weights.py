"""Reads single tensors of a model as a whole, and single rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.gathered_rows import GatheredRows, RowMap, Stored
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype


class StoredWeights:
    """The weights of a model. None is held here."""

    def __init__(self, model: Checkpoint) -> None:
        self._model = model
        self._files = Files()

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self._model.folder

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """As it is stored. Raises CheckpointError if there is none, or none of this shape."""
        stored = self._find(name)
        if stored.shape != tuple(shape):
            what = f"`{name}` is {list(stored.shape)}, by {CONFIG_FILE} it should be {list(shape)}"
            raise CheckpointError.at(self.folder, what)
        return self._read(stored)

    def embeddings(self, tokens: Sequence[int], hidden_size: int) -> Tensor:
        """[tokens, hidden] The input embeddings of some tokens, as they are stored. Raises CheckpointError."""
        name = "model.embed_tokens.weight"
        stored = self._find(name)
        if len(stored.shape) != 2 or stored.shape[1] != hidden_size:
            what = f"`{name}` is {list(stored.shape)}, by {CONFIG_FILE} it should have {hidden_size} columns"
            raise CheckpointError.at(self.folder, what)
        if max(tokens) >= stored.shape[0]:
            what = f"its tokenizer gives token {max(tokens)}, but `{name}` has {stored.shape[0]} rows"
            raise CheckpointError.at(self.folder, what, "use the tokenizer that the weights were trained with")
        n = len(tokens)
        rows = RowMap.of(np.ones(n, np.int64), np.zeros(n, np.int16), np.array(tokens, np.int32))
        return self._read(GatheredRows.of([stored], rows))

    def _find(self, name: str) -> TensorRef:
        stored = self._model.tensors.get(name)
        if stored is None:
            raise CheckpointError.at(self.folder, f"lacks the tensor `{name}`, which {CONFIG_FILE} calls for")
        assert isinstance(stored, TensorRef)  # only experts are joined
        return stored

    def _read(self, stored: Stored) -> Tensor:
        raw = torch.empty(stored.n_bytes, dtype=torch.uint8)
        self._files.read_elements(stored, 0, raw_bytes(raw))
        return raw.view(torch_dtype(stored.dtype)).view(stored.shape)

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._files.close()
