"""Count the NaN and Inf of a tensor; nearly free where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_NOT_FINITE = {
    torch.float8_e4m3fn: (torch.int8, np.uint8, 0x7F),
    torch.float8_e5m2: (torch.int8, np.uint8, 0x7C),
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F800000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0000000000000),
}
"""Integer dtypes of the same size, and the bits of +Inf: those of NaN are larger, those of finite numbers smaller.
(There is no Inf in e4m3fn, only one NaN of each sign.)"""


def count_nonfinite(x: Tensor) -> int:
    """How many elements of x (contiguous) are NaN or infinite."""
    if is_finite(x):
        return 0
    return int(_count(x))


def count_nonfinite_batch(tensors: Sequence[Tensor]) -> list[int]:
    """The same for each of them, one after another. On a GPU, with kernels, they share launches."""
    return [count_nonfinite(x) for x in tensors]


def nonfinite_counts(tensors: Sequence[Tensor]) -> Tensor:
    """The same as int64 [tensors] on their device: the host needn't wait for it."""
    if not tensors or tensors[0].device.type == "cpu":
        return torch.tensor(count_nonfinite_batch(tensors), dtype=torch.int64)
    return torch.stack([_count(x) for x in tensors])


def _count(x: Tensor) -> Tensor:
    signed, _, infinity = _NOT_FINITE[x.dtype]
    return torch.count_nonzero((x.view(signed) & torch.iinfo(signed).max) >= infinity)


def is_finite(x: Tensor) -> bool:
    """Whether no element of x (contiguous) is NaN or infinite."""
    if x.numel() == 0:
        return True
    signed, unsigned, infinity = _NOT_FINITE[x.dtype]
    bits = x.view(signed)
    if x.device.type != "cpu":
        return int((bits & torch.iinfo(signed).max).max()) < infinity
    # The sign bit makes all negative numbers negative, or as unsigned integers larger than all positive ones. So two
    # maxima see both signs, without a temporary.
    words = bits.numpy()
    sign = int(torch.iinfo(signed).max) + 1
    return int(words.max()) < infinity and int(words.view(unsigned).max()) < sign + infinity
