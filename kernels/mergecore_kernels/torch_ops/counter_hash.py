"""Random numbers that depend on the element's index alone: a 32-bit counter hash with two key words.

    h = i ^ k0;  h ^= h >> 17;  h *= 0xed5ad4bb;  h ^= h >> 11;  h += k1
    h *= 0xac4c1b51;  h ^= h >> 15;  h *= 0x31848bab;  h ^= h >> 14     modulo 2³²; i: low 32 bits of the index

A bijection of i for each key. Source: multipliers and shifts of Wellons' `triple32` (Hash Prospector); the two key
words, the second one injected between the multiplications, are ours. Two multiplications are not enough: such a hash
fails tests of serial correlation and chi-square.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace

WORD = 0xFFFFFFFF
_FIRST, _SECOND, _THIRD = 0xED5AD4BB, 0xAC4C1B51, 0x31848BAB


def hash_run(key: Key, start: int, n: int, workspace: Workspace) -> Tensor:
    """[n] int32 bits of the hashes of the elements start ... start + n - 1, valid until the next call."""
    out = workspace.take("hash", n, torch.int32)
    if workspace.use_numpy:
        bits = out.numpy().view(np.uint32)
        shifted = workspace.take("hash shifted", min(n, CHUNK), torch.int32).numpy().view(np.uint32)
        for part in _parts(start, n, CHUNK):
            chunk = bits[part]
            first = (start + part.start) % CHUNK
            seed, second = _chunk_seed(key, start + part.start - first)
            np.bitwise_xor(_ramp()[first : first + len(chunk)], np.uint32(seed), out=chunk)
            _mix_numpy(chunk, second, shifted[: len(chunk)])
    else:
        for part in block_parts(start, n):
            offsets = torch.arange(part.stop - part.start, dtype=torch.int32, device=workspace.device)
            out[part] = hash_offsets_torch(key, start + part.start, offsets)
    return out


def block_parts(start: int, n: int) -> Iterator[slice]:
    """The parts of a run of n elements from `start` on, each within one block of hashes."""
    return _parts(start, n, HASH_RANGE)


def _parts(start: int, n: int, size: int) -> Iterator[slice]:
    """Cut at the multiples of `size`."""
    at = 0
    while at < n:
        end = min(at + size - (start + at) % size, n)
        yield slice(at, end)
        at = end


def hash_offsets(key: Key, start: int, offsets: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """[n] hashes of the elements start + offsets, offsets ≥ 0. All elements are taken to be in the block of `start`."""
    first, second = _words(key, start >> 32)
    bits = offsets.astype(np.uint32)
    np.add(bits, np.uint32(start & WORD), out=bits)
    np.bitwise_xor(bits, np.uint32(first), out=bits)
    shifted = np.right_shift(bits, np.uint32(17))
    np.bitwise_xor(bits, shifted, out=bits)
    _mix_numpy(bits, second, shifted)
    return bits


def hash_offsets_torch(key: Key, start: int, offsets: Tensor) -> Tensor:
    """The same in torch: [n] int32 offsets -> [n] int32 bits of the hashes."""
    first, second = _words(key, start >> 32)
    h = (offsets + signed(start & WORD)) ^ signed(first)
    h = (h ^ _logical_shift(h, 17)) * signed(_FIRST)
    h = (h ^ _logical_shift(h, 11)) + signed(second)
    h = h * signed(_SECOND)
    h = (h ^ _logical_shift(h, 15)) * signed(_THIRD)
    return h ^ _logical_shift(h, 14)


def signed(word: int) -> int:
    """The int32 with the same bits as the unsigned `word`."""
    return word - (1 << 32) if word >> 31 else word


@lru_cache(maxsize=1024)
def _words(key: Key, block: int) -> tuple[int, int]:
    return key.words(block)


def _chunk_seed(key: Key, start: int) -> tuple[int, int]:
    """The hash's first two steps for a chunk, and the second key word.

    The index of an element is start ^ offset, and the offset has 16 bits: h >> 17 is the same for the whole chunk, so
    `h = i ^ k0` and `h ^= h >> 17` come down to one exclusive or with a constant.
    """
    first, second = _words(key, start >> 32)
    seed = (start & WORD) ^ first
    return seed ^ (seed >> 17), second


@lru_cache(maxsize=1)
def _ramp() -> NDArray[np.uint32]:
    return np.arange(CHUNK, dtype=np.uint32)


def _mix_numpy(h: NDArray[np.uint32], second: int, shifted: NDArray[np.uint32]) -> None:
    """The hash from its first multiplication on, in place. Array arithmetic on uint32 wraps."""
    np.multiply(h, np.uint32(_FIRST), out=h)
    np.right_shift(h, np.uint32(11), out=shifted)
    np.bitwise_xor(h, shifted, out=h)
    np.add(h, np.uint32(second), out=h)
    np.multiply(h, np.uint32(_SECOND), out=h)
    np.right_shift(h, np.uint32(15), out=shifted)
    np.bitwise_xor(h, shifted, out=h)
    np.multiply(h, np.uint32(_THIRD), out=h)
    np.right_shift(h, np.uint32(14), out=shifted)
    np.bitwise_xor(h, shifted, out=h)


def _logical_shift(h: Tensor, bits: int) -> Tensor:
    """int32 shifts are arithmetic: the copies of the sign bit are masked away."""
    return (h >> bits) & (WORD >> bits)
