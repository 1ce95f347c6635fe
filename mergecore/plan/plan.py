"""The plan of a merge: all that will be read, computed and written, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergecore.checkpoint.dtypes import Dtype, Shaped
from mergecore.checkpoint.gathered_rows import GatheredRows, Stored
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.checkpoint.location import Download
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.methods import Params, Target

if TYPE_CHECKING:  # workers, which have no need of these, would load them
    from mergecore.plan.gates import Gates
    from mergecore.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Input:
    """One model's tensor that goes into an output tensor."""

    tensor: Stored
    tensor_name: str
    """In that model: layer numbers may differ from the output's."""
    model: int
    """Position of the model in `Plan.models`."""
    update: LowRank | None = None
    """What a LoRA adapter adds to the tensor."""

    @property
    def dtype(self) -> Dtype:
        """As stored."""
        return self.tensor.stored_dtype if isinstance(self.tensor, GatheredRows) else self.tensor.dtype

    def within(self, start: int, stop: int) -> Input:
        """What is needed of it for the elements [start, stop)."""
        if not isinstance(self.tensor, GatheredRows | JoinedTensors):
            return self
        return replace(self, tensor=self.tensor.within(start, stop))


@dataclass(frozen=True, slots=True)
class OutputTensor(Shaped):
    """One tensor to write: all that a worker needs, nothing it must look up."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    """As written."""
    inputs: tuple[Input, ...]
    """In the order of the config. Where deltas are combined, the base is not among them."""
    base: Input | None
    """What deltas are taken from; None where weights are combined."""
    base_index: int | None
    """Where weights are combined: which of the inputs is the base model, if one is."""
    method: str | None
    """None: the inputs must be equal, and one of them is copied."""
    params: Params | None
    """Resolved for this tensor; None where `method` is."""
    double: bool
    """Whether to compute in float64."""
    measured: bool
    """Whether the inputs are read once to measure and once more to combine."""
    shard: int
    """Position in `Plan.shards`."""
    offset_bytes: int
    """From the start of the shard's file."""

    @property
    def columns(self) -> int:
        """Elements of a row, which is a run along the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def sources(self) -> tuple[Input, ...]:
        """All that is read: the inputs, and the base if there is one."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The tensors that a pass reads, each once: models that differ only in their adapters share one."""
        return tuple(dict.fromkeys(source.tensor for source in self.sources))

    @property
    def factors(self) -> tuple[TensorRef, ...]:
        """The factors of all adapters' updates, which are read once and held."""
        return tuple(factor for source in self.sources if source.update for factor in source.update.factors)

    @property
    def on_disk(self) -> tuple[TensorRef, ...]:
        """All that these lie in."""
        in_files = (tensor for tensor in self.stored if not isinstance(tensor, InlineTensor))
        return (*(part for tensor in in_files for part in tensor.parts), *self.factors)

    def within(self, start: int, stop: int) -> OutputTensor:
        """What a worker needs of it for the elements [start, stop): not all rows or parts of a large one."""
        if not any(isinstance(tensor, GatheredRows | JoinedTensors) for tensor in self.stored):
            return self
        inputs = tuple(input_.within(start, stop) for input_ in self.inputs)
        return replace(self, inputs=inputs, base=None if self.base is None else self.base.within(start, stop))

    @property
    def input_bytes(self) -> int:
        """Bytes that one pass reads."""
        return sum(tensor.n_bytes for tensor in (*self.stored, *self.factors))

    def target(self, seed: int, survey: Any = None) -> Target:
        """What a recipe is told of this tensor."""
        models = tuple(source.model for source in self.inputs)
        return Target(
            name=self.name,
            n=self.n,
            models=models,
            base=self.base_index,
            seed=seed,
            shape=self.shape,
            survey=survey,
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of the output."""

    name: str
    header: bytes
    n_bytes: int
    """Of the whole file."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is merged."""

    name: str
    """As the config names it."""
    folder: Path
    """Where its files are or will be; the file itself, if it is only one."""
    commit: str | None = None
    """On the Hub; None for a local model."""
    download: Download | None = None
    """What isn't here yet."""


@dataclass(frozen=True, slots=True)
class ModuleLayers:
    """The layers of one module of the output."""

    module: str
    n: int
    settings: dict[str, Any]
    """What config.json must say because of them; `text_config.n_layer` is inside of `text_config`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a merge that is known before the first weight is read. Made by `mergecore.plan.build.build`."""

    config: dict[str, Any]
    """The resolved config, ready to be run again."""
    method: str
    architecture: str
    models: tuple[Model, ...]
    """In the order of the config, each once."""
    donor: int
    """The model whose config.json, tokenizer and generation settings the output gets: the base, or the first."""
    donor_config: dict[str, Any]
    layers: tuple[ModuleLayers, ...]
    """Of each module that is written."""
    files: tuple[str, ...]
    """Further files that belong to a model of this kind, copied from the donor if it has them."""
    tokenizer: TokenizerFiles
    """Of the output."""
    vocabulary: Vocabulary | None
    """None: the config asks for none, so the rows of embeddings stay as they are."""
    vocabulary_settings: dict[str, Any]
    """What config.json must say because of the number of tokens, and of their numbers."""
    dtype: Dtype
    """Of the output: of most of its bytes, where tensors differ."""
    has_head: bool | None
    """Whether an output head is written; None: none of the modules written has one that could be tied."""
    tensors: tuple[OutputTensor, ...]
    shards: tuple[Shard, ...]
    surveyed: bool
    """Whether the method looks at all tensors before the first one is merged."""
    seed: int | None
    """None: nothing in this merge is random."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""
    name: str | None = None
    """Of the stage, in a config of several."""
    before: tuple[Plan, ...] = ()
    """The stages that this one needs, each after those that it needs itself."""
    gates: Gates | None = None
    """What is computed before the first tensor is written; None where this is no mixture of experts."""

    @property
    def read_bytes(self) -> int:
        """Bytes of all inputs, each counted once."""
        return sum(tensor.input_bytes for tensor in self.tensors)

    @property
    def passes_bytes(self) -> int:
        """Bytes that the passes over the inputs take together, at least: measured tensors are read once more, and so
        are all in a survey.
        """
        return sum(tensor.input_bytes * (1 + tensor.measured + self.surveyed) for tensor in self.tensors)

    @property
    def download_bytes(self) -> int:
        """Bytes that must be downloaded before the merge."""
        return sum(model.download.n_bytes for model in self.models if model.download is not None)

    @property
    def write_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """Names this merge: a hash of all that decides the bytes written."""
        parts: Sequence[object] = (self.tensors, [(s.name, s.n_bytes) for s in self.shards], self.seed)
        if self.gates is not None:
            parts = (*parts, self.gates)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
