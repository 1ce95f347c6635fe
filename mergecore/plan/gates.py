"""The gate vectors that the routers of a mixture of experts begin with. A plan says how they are made; their values are
found when it is carried out, since for most of them a model must be run.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.config.mixture import GateMode

if TYPE_CHECKING:
    from mergecore.plan.plan import OutputTensor, Plan

_KEY = "gates"
_DTYPE = Dtype.F32


@dataclass(frozen=True, slots=True)
class GateRows:
    """The gates that a tensor of the output holds, one after another."""

    layer: int
    expert: int
    """The first one."""
    count: int

    def placeholder(self, hidden_size: int) -> InlineTensor:
        """[count, hidden] The tensor, before its values are known."""
        label = f"gates of layer {self.layer}, experts {self.expert} to {self.expert + self.count - 1}"
        return InlineTensor(label, _DTYPE, (self.count, hidden_size))


@dataclass(frozen=True, slots=True)
class Gates:
    """How the gates of a mixture are made."""

    mode: GateMode
    prompts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Positive and negative ones of each expert."""
    layers: int
    hidden_size: int
    rows: Mapping[str, GateRows]
    """By the tensors' names."""
    files: tuple[str, ...]
    """That are read for them."""

    def recorded(self, values: bytes) -> dict[str, str]:
        """The gates as plain data, for the journal and the manifest. values: float32 [layers, experts, hidden]."""
        assert len(values) == self.layers * self._layer_bytes
        return {_KEY: base64.b64encode(values).decode()}

    def values(self, recorded: Mapping[str, Any]) -> bytes:
        """What was recorded."""
        return base64.b64decode(recorded[_KEY])

    def filled(self, tensor: OutputTensor, values: bytes) -> OutputTensor:
        """The tensor with its values, if it holds gates; else the tensor."""
        rows = self.rows.get(tensor.name)
        if rows is None:
            return tensor
        (source,) = tensor.inputs
        assert isinstance(source.tensor, InlineTensor)
        begin = rows.layer * self._layer_bytes + rows.expert * self._row_bytes
        data = values[begin : begin + rows.count * self._row_bytes]
        return replace(tensor, inputs=(replace(source, tensor=replace(source.tensor, data=data)),))

    @property
    def _row_bytes(self) -> int:
        return self.hidden_size * _DTYPE.size

    @property
    def _layer_bytes(self) -> int:
        return len(self.prompts) * self._row_bytes


def with_gates(plan: Plan, recorded: Mapping[str, Any]) -> Plan:
    """The plan of a mixture with the values of its gates."""
    assert plan.gates is not None
    values = plan.gates.values(recorded)
    return replace(plan, tensors=tuple(plan.gates.filled(tensor, values) for tensor in plan.tensors))
