"""The counter hash in kernels: the values of the torch twin, which later versions must keep."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops.counter_hash import hash_run
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.counter_hash import hash_offsets, hash_seed, key_words

KEY = Key.of("drop", 42, "model.embed_tokens.weight", 1)
STARTS = [0, CHUNK, (1 << 31) - CHUNK, (1 << 32) - CHUNK, 1 << 32, 5 * 10**9 // CHUNK * CHUNK]


@triton.jit
def _hash_kernel(out_ptr, words_ptr, start: tl.int64, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    """As kernels use it: the first SKIP elements of a program are left out, or are those of another body."""
    at = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    seed = hash_seed(start + at, tl.load(words_ptr))
    hashes = hash_offsets((lane + SKIP).to(tl.uint32), seed, tl.load(words_ptr + 1))
    tl.store(out_ptr + at + SKIP + lane, hashes.to(tl.int32, bitcast=True), mask=SKIP + lane < BLOCK)


def hashes(key, start, n, block, skip=0):
    out = torch.zeros(n, dtype=torch.int32)
    words = torch.tensor(np.array(key_words(key, start), dtype=np.uint32).view(np.int32))
    _hash_kernel[(n // block,)](out, words, start, SKIP=skip, BLOCK=block)
    return out


def test_golden_values():
    got = hashes(KEY, 0, 256, 256)[:4].numpy().view(np.uint32)
    assert got.tolist() == [3900335799, 4183101722, 988137854, 2358763423]
    got = hashes(KEY, 1 << 32, 256, 256)[:4].numpy().view(np.uint32)
    assert got.tolist() == [292411530, 192030309, 1392539187, 1836180302]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("block", [16, 2048, 16384, CHUNK])
def test_equals_the_twin(start, block):
    n = min(CHUNK, 8 * block)
    assert torch.equal(hashes(KEY, start, n, block), hash_run(KEY, start, n, Workspace("cpu", 0)))


@pytest.mark.parametrize("model", range(8))
def test_any_key(model):
    key = Key.of("trim", model, "lm_head.weight", model)
    assert torch.equal(hashes(key, CHUNK, 4096, 2048), hash_run(key, CHUNK, 4096, Workspace("cpu", 0)))


@pytest.mark.parametrize("skip", [16, 1008, 2032])
def test_offsets_may_begin_anywhere_in_a_program(skip):
    want = hash_run(KEY, 0, 4096, Workspace("cpu", 0)).clone().view(2, 2048)
    want[:, :skip] = 0
    assert torch.equal(hashes(KEY, 0, 4096, 2048, skip), want.flatten())
