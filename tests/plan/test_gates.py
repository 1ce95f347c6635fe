"""The gates in a plan: recorded as plain data, and put into the tensors that hold them."""

from __future__ import annotations

import json

import numpy as np

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.inline_tensor import InlineTensor
from mergecore.plan.gates import GateRows, Gates
from mergecore.plan.plan import Input, OutputTensor

LAYERS, EXPERTS, HIDDEN = 2, 3, 4
ROWS = {"router": GateRows(1, 0, 2), "shared": GateRows(0, 2, 1)}
VALUES = np.arange(LAYERS * EXPERTS * HIDDEN, dtype=np.float32).reshape(LAYERS, EXPERTS, HIDDEN)
GATES = Gates("hidden", (((), ()),) * EXPERTS, LAYERS, HIDDEN, ROWS, ())


def waiting(name: str, tensor: InlineTensor) -> OutputTensor:
    """A tensor that is copied from one that has no values yet."""
    return OutputTensor(
        name, tensor.shape, Dtype.BF16, (Input(tensor, name, 0),), base=None, base_index=None, method=None, params=None,
        double=False, measured=False, shard=0, offset_bytes=0,
    )  # fmt: skip


def test_what_is_recorded_is_plain_data() -> None:
    recorded = json.loads(json.dumps(GATES.recorded(VALUES.tobytes())))
    assert GATES.values(recorded) == VALUES.tobytes()


def test_each_tensor_gets_its_rows() -> None:
    router = waiting("router", ROWS["router"].placeholder(HIDDEN))
    shared = waiting("shared", ROWS["shared"].placeholder(HIDDEN))
    assert (router.shape, shared.shape) == ((2, HIDDEN), (1, HIDDEN))
    for tensor, want in ((router, VALUES[1, :2]), (shared, VALUES[0, 2:])):
        filled = GATES.filled(tensor, VALUES.tobytes())
        (source,) = filled.inputs
        assert isinstance(source.tensor, InlineTensor)
        assert source.tensor.data == want.tobytes()
        assert filled == tensor  # so that a plan is known by its digest before it has values


def test_other_tensors_stay() -> None:
    other = waiting("other", InlineTensor.zeros(Dtype.F32, (2,)))
    assert GATES.filled(other, VALUES.tobytes()) is other


def test_a_tensor_that_waits_lies_in_no_file() -> None:
    router = waiting("router", ROWS["router"].placeholder(HIDDEN))
    assert router.on_disk == ()
    assert router.within(0, 4) is router
