"""The counter hash: its values, and that they look random."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from mergecore_kernels.operations import Drop, Key
from mergecore_kernels.torch_ops.counter_hash import hash_offsets, hash_offsets_torch, hash_run
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace

KEY = Key.of("drop", 42, "model.embed_tokens.weight", 1)
DRAWS = 1 << 20
STARTS = [0, CHUNK, 7 * CHUNK, (1 << 31) - CHUNK, (1 << 32) - CHUNK, 1 << 32, 5 * 10**9 // CHUNK * CHUNK]


@lru_cache
def draws(key):
    """[DRAWS] the hashes of the first elements. Not to be changed."""
    workspace = Workspace("cpu", 0)
    return np.concatenate([unsigned(hash_run(key, at, CHUNK, workspace)) for at in range(0, DRAWS, CHUNK)])


def unsigned(bits):
    return bits.numpy().view(np.uint32).astype(np.int64)


def test_golden_values(workspace):
    """A merge must be repeatable by every later version."""
    assert KEY.words(0) == (1323501702, 1578335577)
    assert unsigned(hash_run(KEY, 0, 4, workspace)).tolist() == [3900335799, 4183101722, 988137854, 2358763423]
    assert unsigned(hash_run(KEY, 1 << 32, 4, workspace)).tolist() == [292411530, 192030309, 1392539187, 1836180302]


@pytest.mark.parametrize("start", STARTS)
def test_all_forms_equal_the_formula(workspace, oracle_hash, start):
    want = oracle_hash(KEY, np.arange(start, start + CHUNK))
    np.testing.assert_array_equal(unsigned(hash_run(KEY, start, CHUNK, workspace)), want)
    offsets = np.array([0, 1, 2, 999, CHUNK - 1])
    np.testing.assert_array_equal(hash_offsets(KEY, start, offsets), want[offsets])
    offsets_torch = torch.from_numpy(offsets).to(torch.int32)
    np.testing.assert_array_equal(unsigned(hash_offsets_torch(KEY, start, offsets_torch)), want[offsets])


def test_offsets_may_go_beyond_a_chunk(oracle_hash):
    offsets = np.array([0, CHUNK, 3 * CHUNK + 5])
    want = oracle_hash(KEY, CHUNK + offsets)
    np.testing.assert_array_equal(hash_offsets(KEY, CHUNK, offsets), want)
    np.testing.assert_array_equal(unsigned(hash_offsets_torch(KEY, CHUNK, torch.from_numpy(offsets).int())), want)


def test_runs_of_any_length(workspace):
    whole = hash_run(KEY, CHUNK, 3 * CHUNK, workspace).clone()
    assert torch.equal(hash_run(KEY, CHUNK, 77, workspace), whole[:77])
    assert torch.equal(hash_run(KEY, 2 * CHUNK, CHUNK + 5, workspace), whole[CHUNK : 2 * CHUNK + 5])
    assert hash_run(KEY, CHUNK, 0, workspace).numel() == 0


def test_elements_of_a_block_have_different_hashes():
    assert len(np.unique(draws(KEY))) == DRAWS


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9])
def test_rate_is_the_density(density):
    kept = np.count_nonzero(draws(KEY) < Drop.keeping(density, KEY).threshold)
    assert abs(kept - DRAWS * density) < 4.5 * np.sqrt(DRAWS * density * (1 - density))


@pytest.mark.parametrize("shift", [0, 8, 16, 24], ids=lambda shift: f"bits {shift}-{shift + 7}")
def test_each_byte_is_uniform(shift):
    counts = np.bincount(draws(KEY) >> shift & 0xFF, minlength=256)
    chi_square = np.sum((counts - DRAWS / 256) ** 2) / (DRAWS / 256)
    assert abs(chi_square - 255) < 4.5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 64, 256, 2048, 4096, 11008, CHUNK])
def test_no_serial_correlation(lag):
    """At the lags of neighbours, of rows of a matrix and of chunks."""
    x = draws(KEY) / 2.0**32 - 0.5
    z = np.mean(x[lag:] * x[:-lag]) * 12 * np.sqrt(DRAWS - lag)
    assert abs(z) < 4.5


def test_counts_of_blocks_vary_as_they_should():
    """Kept elements per run of 1024: neither too even nor too uneven."""
    kept = (draws(KEY) < 1 << 31).reshape(-1, 1024).sum(axis=1)
    variance = np.mean((kept - 512.0) ** 2) / 256.0
    assert abs(variance - 1) < 4.5 * np.sqrt(2 / len(kept))


@pytest.mark.parametrize(
    "other",
    [
        Key.of("drop", 42, "model.embed_tokens.weight", 2),
        Key.of("drop", 43, "model.embed_tokens.weight", 1),
        Key.of("drop", 42, "lm_head.weight", 1),
        Key.of("trim", 42, "model.embed_tokens.weight", 1),
    ],
    ids=["model", "seed", "tensor", "use"],
)
def test_keys_are_independent(other):
    x, y = (draws(key) / 2.0**32 - 0.5 for key in (KEY, other))
    assert abs(np.mean(x * y) * 12 * np.sqrt(DRAWS)) < 4.5
    both = np.count_nonzero((x < 0) & (y < 0))
    assert abs(both - DRAWS / 4) < 4.5 * np.sqrt(DRAWS * 3 / 16)


def test_blocks_are_independent():
    workspace = Workspace("cpu", 0)
    x = unsigned(hash_run(KEY, 0, CHUNK, workspace)) / 2.0**32 - 0.5
    y = unsigned(hash_run(KEY, 1 << 32, CHUNK, workspace)) / 2.0**32 - 0.5
    assert abs(np.mean(x * y) * 12 * np.sqrt(CHUNK)) < 4.5
