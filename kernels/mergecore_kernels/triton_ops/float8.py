"""Float8 inputs, in kernels: cast to float32 by bit operations, as not every GPU has an instruction for it.

They are loaded as bytes, 64 bits at a time where a thread has 8 elements. With 16, for 128 bits, it would need
twice the registers for the deltas, and what it stores has 16 bits or more.
"""

from __future__ import annotations

import triton
import triton.language as tl

E4M3FN, E5M2 = tl.constexpr(tl.float8e4nv), tl.constexpr(tl.float8e5)
_PLACES = tl.constexpr(-0x78100000)
"""Of an e4m3fn's bits in a float32: the sign, the last 4 of the exponent, the first 3 of the mantissa."""
_REBIASED = tl.constexpr(2.0**120)
"""The bias of a float32's exponent is 127, that of e4m3fn is 7."""
_NAN = tl.constexpr(480.0)
"""What the bits of an e4m3fn NaN would stand for, above the largest number, 448."""


@triton.constexpr_function
def loaded_as(dtype: tl.dtype) -> tl.dtype:
    """What a tensor of this dtype is seen as in memory."""
    return tl.uint8 if dtype.is_fp8() else dtype


@triton.jit
def widen_e4m3fn(
    stored,  # uint8 [LANES]
):
    """float32 [LANES]: 6 instructions per element."""
    # The sign is extended to 32 bits, and all copies of it but the first are taken out.
    bits = (stored.to(tl.int8, bitcast=True).to(tl.int32) << 20) & _PLACES
    values = bits.to(tl.float32, bitcast=True) * _REBIASED
    return tl.where(tl.abs(values) == _NAN, float("nan"), values)


@triton.jit
def widen_e5m2(
    stored,  # uint8 [LANES]
):
    """float32 [LANES]: 3 instructions per element. The byte is the upper one of a float16."""
    return (stored.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
