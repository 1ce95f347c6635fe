"""Random numbers that depend on the element's index alone, in kernels: the hash of `torch_ops/counter_hash.py`.

A program has at most 2¹⁶ elements, and the index of the first one is a multiple of their number, a power of two. So an
index is `first index ^ offset`, and `h = i ^ k0; h ^= h >> 17` comes down to one exclusive or with a number that the
whole program has in common. `(h + k1) · c` is `h · c + k1 · c`, one instruction if `k1 · c` comes from outside. What is
left are 10 instructions per element instead of 15; a comparison is one more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.operations import HASH_RANGE, Key

_FIRST = tl.constexpr(0xED5AD4BB)
_SECOND = tl.constexpr(0xAC4C1B51)
_THIRD = tl.constexpr(0x31848BAB)


@triton.jit
def hash_seed(
    index,  # int64: the program's first element, in the whole tensor
    first,  # the first word of `key_words`, as any integer of 32 bits or more
):
    """uint32: what the program's hashes have in common."""
    seed = index.to(tl.uint32) ^ first.to(tl.uint32)
    return seed ^ (seed >> 17)


@triton.jit
def hash_offsets(
    offset,  # uint32 [BLOCK], below the number of the program's elements
    seed,  # of `hash_seed`
    second,  # the second word of `key_words`, as any integer of 32 bits or more
):
    """uint32 [BLOCK]: the hashes of the elements `index + offset`."""
    h = (offset ^ seed) * _FIRST
    h = (h ^ (h >> 11)) * _SECOND + second.to(tl.uint32)
    h = (h ^ (h >> 15)) * _THIRD
    return h ^ (h >> 14)


@triton.jit
def hash_index(
    index,  # int64 [BLOCK]: any elements of the tensor
    first_block,  # int64: a block of hashes, at or before theirs
    words_ptr,  # int32 [blocks, 2]: `key_words`, from this block on
):
    """uint32 [BLOCK]: the hashes of the elements `index`."""
    words_ptr += 2 * ((index >> 32) - first_block)
    mixed = index.to(tl.uint32) ^ tl.load(words_ptr).to(tl.uint32, bitcast=True)
    return hash_offsets(mixed >> 17, mixed, tl.load(words_ptr + 1).to(tl.uint32, bitcast=True))


def key_words(key: Key, start: int) -> tuple[int, int]:
    """What the kernels need of a key, for the elements in the block of `start`: k0 and k1 · c, both below 2³²."""
    first, second = key.words(start >> 32)
    return first, second * _SECOND.value % HASH_RANGE
