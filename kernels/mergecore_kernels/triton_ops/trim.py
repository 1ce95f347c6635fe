"""Keep the largest magnitudes, in kernels: TIES' mask, and the band of breadcrumbs."""

from __future__ import annotations

from math import inf

import numpy as np
import triton
import triton.language as tl

from mergecore_kernels.operations import Trim
from mergecore_kernels.triton_ops.counter_hash import key_words


@triton.jit
def bound_by_hash(
    hashes,  # uint32 [LANES]
    cut,  # uint32
    below,  # float32: the largest number below the k-th magnitude
    magnitude,  # float32: the k-th magnitude
):
    """float32 [LANES]: the k-th magnitude and what comes before it are above this, what comes after it is not."""
    return tl.where(hashes <= cut, below, magnitude)


@triton.jit
def kept_by_trim(
    delta,  # float32 [LANES]
    bound,  # float32 [LANES] or one
):
    """bool [LANES]: |δ| is above the bound, or NaN."""
    return (tl.abs(delta) <= bound) == 0


@triton.jit
def kept_by_band(
    delta,  # float32 [LANES]
    upper,  # float32 [LANES]: the bound of the outliers
):
    """bool [LANES]: |δ| is not above it, or NaN."""
    return (tl.abs(delta) > upper) == 0


def trim_words(mask: Trim, start: int) -> list[int]:
    """[8] the 32-bit words of the mask table: key; cut and both bounds; the same of the outliers."""
    # The trim at zero keeps all zeros, whatever their hashes.
    keep = _bounds(mask.magnitude, mask.hash_cut) if mask.magnitude > 0.0 else [0, _BELOW_ZERO, _BELOW_ZERO]
    return [*key_words(mask.key, start), *keep, *_bounds(mask.upper, mask.upper_cut)]


def _bounds(magnitude: float, cut: int) -> list[int]:
    """The words that `bound_by_hash` takes."""
    at = below = np.float32(magnitude)
    if cut >= 0 and magnitude < inf:
        below = np.nextafter(at, np.float32(-1.0))
    return [max(cut, 0), float_bits(below), float_bits(at)]


def float_bits(value: float | np.float32) -> int:
    """The bits of a float32 as an unsigned integer."""
    return int(np.float32(value).view(np.uint32))


_BELOW_ZERO = float_bits(-1.0)
