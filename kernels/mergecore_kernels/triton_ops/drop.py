"""Drop elements at random, in kernels: DARE's mask. A comparison of the counter hash, 11 instructions per element."""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.operations import HASH_RANGE, Drop
from mergecore_kernels.triton_ops.counter_hash import key_words


@triton.jit
def kept_by_drop(
    hashes,  # uint32 [BLOCK]
    last,  # the largest hash that is kept, as any integer of 32 bits
):
    """bool [BLOCK]"""
    return hashes <= last.to(tl.uint32)


def drop_words(mask: Drop, start: int) -> list[int]:
    """[3] the 32-bit words of the mask table: key, and the last hash. (A mask that keeps nothing needs no words.)"""
    return [*key_words(mask.key, start), min(max(mask.threshold, 1), HASH_RANGE) - 1]
