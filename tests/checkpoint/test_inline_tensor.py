"""Tensors that are carried along."""

from __future__ import annotations

import numpy as np

from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.inline_tensor import InlineTensor


def test_elements_are_read_from_any_one_on() -> None:
    values = np.arange(12, dtype=np.float32)
    tensor = InlineTensor("numbers", Dtype.F32, (3, 4), values.tobytes())
    assert (tensor.n, tensor.n_bytes) == (12, 48)
    found = np.empty(5, np.float32)
    tensor.read(6, memoryview(found).cast("B"))
    assert found.tolist() == [6, 7, 8, 9, 10]


def test_zeros() -> None:
    assert InlineTensor.zeros(Dtype.F16, (2, 3)).data == bytes(12)


def test_a_tensor_is_known_by_its_label_before_it_has_values() -> None:
    waiting, known = (InlineTensor("gates", Dtype.F32, (1,), data) for data in (b"", b"1234"))
    assert waiting == known
    assert repr(waiting) == repr(known)
    assert waiting != InlineTensor("others", Dtype.F32, (1,))
