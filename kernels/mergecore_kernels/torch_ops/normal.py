"""Standard normal random numbers in float32, by the inverse of their distribution: the same bits on every device.

31 bits of the counter hash give the probability p, in (0, 1], that a magnitude is larger than the one looked for; its
last bit gives the sign. The magnitude is √2 · erf⁻¹(1 - p), for which there are two polynomials in ln(p (2 - p)): one
for the middle, one for the tails. Each step is + - × ÷ √ or an operation on bits. The largest magnitude is 6.3.

Source: Giles 2012, Approximating the erfinv function (GPU Computing Gems, Jade edition). Relative error below 10⁻⁶ up
to a magnitude of 5.5; 4·10⁻⁴ beyond, where one number in 26 million lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops.counter_hash import hash_run
from mergecore_kernels.torch_ops.exponential import log, polynomial
from mergecore_kernels.torch_ops.workspace import Workspace

_MIDDLE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
"""In w - 2.5 for w = -ln(p (2 - p)) below 5, the highest power first."""
_TAILS = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip
"""In √w - 3 from there on."""
_BOUNDARY = 5.0
_HALF_RANGE = 1 << 31


def normal(key: Key, start: int, n: int, workspace: Workspace) -> Tensor:
    """float32 [n] the numbers of the elements start ... start + n - 1 under a key."""
    hashes = hash_run(key, start, n, workspace)
    # The first 31 bits as a number; a conversion to float32 rounds once.
    tail = (((hashes >> 1) & (_HALF_RANGE - 1)).to(torch.float32) + 0.5) * (1.0 / _HALF_RANGE)
    magnitude = _inverse_error_function(tail).mul_(2**0.5)
    return torch.where((hashes & 1).bool(), -magnitude, magnitude)


def _inverse_error_function(tail: Tensor) -> Tensor:
    """float32 [n] erf⁻¹(1 - p) for p in (0, 1]"""
    w = log(tail * (2.0 - tail)).neg_()
    scratch = torch.empty_like(w)
    middle = polynomial(w - 2.5, _MIDDLE, scratch)
    # Below the boundary its value isn't used, and ln of a number that rounds to 1 may be positive.
    tails = polynomial(w.clamp(min=_BOUNDARY).sqrt_() - 3.0, _TAILS, torch.empty_like(w))
    return torch.where(w < _BOUNDARY, middle, tails).mul_(1.0 - tail)
