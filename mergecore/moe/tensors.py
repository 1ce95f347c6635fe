"""The output tensors of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergecore.checkpoint.architecture import Module, Weight
from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.gathered_rows import Stored
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.config.mixture import METHOD, Expert, MixtureConfig
from mergecore.errors import Problem
from mergecore.methods.moe import MoeParams
from mergecore.moe.outputs import COMPUTED, MATRICES, STACKED, Output
from mergecore.plan.gates import GateRows, Gates
from mergecore.plan.plan import Input, OutputTensor

_MLP = ".mlp."


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One of the matrices of an expert's MLP in one layer."""

    expert: Expert
    number: int
    """Of the expert; shared ones come after the others."""
    kind: str
    """One of `MATRICES`."""
    layer: int

    @property
    def name(self) -> str:
        """In the expert's model."""
        return f"model.layers.{self.layer}.mlp.{self.kind}.weight"

    @property
    def scale(self) -> float:
        """What is scaled is what the MLP adds, so its last matrix."""
        return self.expert.residual_scale if self.kind == "down_proj" else 1.0


@dataclass(slots=True)
class MixturePlanner:
    """Makes the output tensors of a mixture, and collects all that is wrong with them in `problems`."""

    config: MixtureConfig
    output: Output
    module: Module
    """Of the base model, which is the first one."""
    positions: Mapping[ModelReference, int]
    """Of the models."""
    models: Sequence[Checkpoint]
    names: Sequence[str]
    """Of the models, as in the config."""
    dtype: Dtype
    """Of the tensors that are written."""
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    """Each with the name of the output tensor that it is about."""
    _rows: dict[str, GateRows] = field(default_factory=dict)

    @property
    def base(self) -> Checkpoint:
        return self.models[0]

    @property
    def n_layers(self) -> int:
        return self.module.layers_of(self.base)

    @property
    def hidden_size(self) -> int:
        size: int = self.base.config["hidden_size"]
        return size

    def gates(self) -> Gates:
        """How the gates of the tensors that were planned are made."""
        experts = [*self.config.experts, *(self.config.shared_experts if self.output.shared_gate else ())]
        read = [] if self.config.is_random else _in_files(self.base.tensors.values())
        return Gates(
            mode=self.config.gate_mode,
            prompts=tuple((expert.positive_prompts, expert.negative_prompts) for expert in experts),
            layers=self.n_layers,
            hidden_size=self.hidden_size,
            rows=self._rows,
            files=tuple(dict.fromkeys(tensor.file for tensor in read)),
        )

    def tensors(self) -> Iterator[OutputTensor]:
        """All output tensors, in the order of the model. Those with a problem are left out."""
        yield from self._of_base(self.module.before, 0)
        for layer in range(self.n_layers):
            yield from self._of_base((w for w in self.module.layer if _MLP not in w.name), layer)
            yield from self._zero_biases(layer)
            yield from self._mlp(layer)
        yield from self._of_base(self.module.after, self.n_layers)

    def _of_base(self, weights: Iterator[Weight] | Sequence[Weight], number: int) -> Iterator[OutputTensor]:
        """Copies of what the base has of these."""
        for weight in weights:
            name, *others = weight.own_names(number)
            found = next((one for one in (name, *others) if one in self.base.tensors), None)
            if found is not None and not found.endswith(COMPUTED):
                yield self._tensor(name, self._input(0, found))
            elif found is None and not weight.optional:
                self._lacks(name, 0, name)

    def _zero_biases(self, layer: int) -> Iterator[OutputTensor]:
        """Those that the output must have and the base has not."""
        for projection in self.output.biases:
            start = f"model.layers.{layer}.self_attn.{projection}"
            matrix = self.base.tensors.get(f"{start}.weight")
            if f"{start}.bias" not in self.base.tensors and matrix is not None:
                zeros = InlineTensor.zeros(Dtype.F32, matrix.shape[:1])
                yield self._tensor(f"{start}.bias", Input(zeros, f"{start}.bias", 0))

    def _mlp(self, layer: int) -> Iterator[OutputTensor]:
        """What takes the place of a layer's MLP: a router, experts, and perhaps a shared one with its gate."""
        n, shared = len(self.config.experts), self.config.shared_experts
        stacked = self.config.expert_layout == STACKED
        yield self._gate(self.output.router_name(layer, stacked=stacked), GateRows(layer, 0, n))
        yield from self._stacked_experts(layer) if stacked else self._separate_experts(layer)
        for number, expert in enumerate(shared, start=n):
            for kind in MATRICES:
                name = self.output.shared.format(layer=layer, matrix=kind)
                yield from self._of_experts(name, [_Matrix(expert, number, kind, layer)])
        if shared and self.output.shared_gate:
            yield self._gate(self.output.shared_gate.format(layer=layer), GateRows(layer, n, len(shared)))

    def _separate_experts(self, layer: int) -> Iterator[OutputTensor]:
        for number, expert in enumerate(self.config.experts):
            for kind in MATRICES:
                name = self.output.expert_name(kind, layer, number)
                yield from self._of_experts(name, [_Matrix(expert, number, kind, layer)])

    def _stacked_experts(self, layer: int) -> Iterator[OutputTensor]:
        experts = list(enumerate(self.config.experts))
        for name, kinds in self.output.stacked_names(layer).items():
            matrices = [_Matrix(expert, number, kind, layer) for number, expert in experts for kind in kinds]
            yield from self._of_experts(name, matrices, stack=len(experts))

    def _gate(self, name: str, rows: GateRows) -> OutputTensor:
        """A tensor whose values are found later."""
        self._rows[name] = rows
        return self._tensor(name, Input(rows.placeholder(self.hidden_size), name, 0))

    def _of_experts(self, name: str, matrices: Sequence[_Matrix], stack: int = 0) -> Iterator[OutputTensor]:
        """A tensor of one matrix, or where a number of experts is stacked of theirs; none if there is a problem."""
        sources = [self._source(name, matrix, bool(stack)) for matrix in matrices]
        found = [source for source in sources if source is not None]
        if len(found) < len(matrices):
            return
        source = found[0]
        if stack:
            rows, columns = source.tensor.shape
            parts = _in_files(one.tensor for one in found)
            joined = JoinedTensors.of(parts, (stack, len(matrices) // stack * rows, columns))
            source = replace(source, tensor=joined, tensor_name=name)
        params = MoeParams(
            noise_scale=tuple(matrix.expert.noise_scale for matrix in matrices),
            residual_scale=tuple(matrix.scale for matrix in matrices),
            names=tuple(f"{matrix.name} {matrix.number}" for matrix in matrices),
        )
        yield self._tensor(name, source, params)

    def _source(self, name: str, matrix: _Matrix, stacked: bool) -> Input | None:
        """Where a matrix of the output's tensor `name` is; None if there is a problem with it."""
        model = self.positions[matrix.expert.source_model]
        stored = self.models[model].tensors.get(matrix.name)
        if stored is None:
            self._lacks(name, model, matrix.name)
            return None
        bias = f"{matrix.name.removesuffix('weight')}bias"
        if bias in self.models[model].tensors:
            what = f"{self.names[model]} has the tensor `{bias}`, and experts have no biases"
            self._problem(name, what, "only models without them can be experts")
            return None
        wanted = self._mlp_shape(matrix.kind)
        if stored.shape != wanted:
            what = f"`{matrix.name}` is {list(stored.shape)} in {self.names[model]}, expected {list(wanted)}"
            self._problem(name, what, f"all experts must have the sizes that {CONFIG_FILE} of the base model tells")
            return None
        if stacked and matrix.name in self.models[model].updates:
            what = f"`{matrix.name}` of {self.names[model]} is changed by a LoRA adapter, and can't be stacked"
            self._problem(name, what, "write `expert_layout: separate`, or merge the adapter in a stage before")
            return None
        return self._input(model, matrix.name)

    def _mlp_shape(self, matrix: str) -> tuple[int, int]:
        size: int = self.base.config["intermediate_size"]
        return (self.hidden_size, size) if matrix == "down_proj" else (size, self.hidden_size)

    def _input(self, model: int, name: str) -> Input:
        return Input(self.models[model].tensors[name], name, model, self.models[model].updates.get(name))

    def _tensor(self, name: str, source: Input, params: MoeParams | None = None) -> OutputTensor:
        """Of which it isn't known yet where in the output it lies. Without parameters it is a copy."""
        stored = source.dtype
        return OutputTensor(
            name=name,
            shape=source.tensor.shape,
            dtype=self.dtype if stored.is_floating else stored,
            inputs=(source,),
            base=None,
            base_index=None,
            method=None if params is None else METHOD,
            params=params,
            double=stored is Dtype.F64,
            measured=False,
            shard=0,
            offset_bytes=0,
        )

    def _lacks(self, name: str, model: int, tensor: str) -> None:
        what = f"{self.names[model]} lacks the tensor `{tensor}`, which the output's `{name}` is made from"
        self._problem(name, what, "is this a whole model?")

    def _problem(self, name: str, what: str, hint: str) -> None:
        self.problems.append((name, Problem(self.config.where(), what, hint)))


def _in_files(tensors: Iterable[Stored]) -> list[TensorRef]:
    """Those of dense models, each of which lies in one file."""
    return [tensor for tensor in tensors if isinstance(tensor, TensorRef)]
