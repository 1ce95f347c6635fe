"""Digests of tensors: the same whoever wrote which part, and another one for any other bytes."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128

from mergecore.checkpoint.dtypes import Dtype
from mergecore.plan.plan import OutputTensor
from mergecore.stream import digests
from mergecore.stream.digests import BlockHasher, Digests, PieceHasher, blocks_within, hash_stored, tensor_digest

BLOCK = 16


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "BLOCK", BLOCK)
        yield


def tensor(n_bytes: int) -> OutputTensor:
    return OutputTensor("x", (n_bytes,), Dtype.U8, (), None, None, None, None, False, False, 0, 0)


def definition(data: bytes) -> str:
    hashes = [xxh3_128(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    return xxh3_128(b"".join(hashes)).hexdigest()


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5), st.integers(1, 40))
def test_the_digest_does_not_depend_on_runs_and_tiles(data: bytes, cuts: list[int], tile: int) -> None:
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = Digests()
    for start, stop in pairwise(borders):
        hasher = BlockHasher(start, len(data))
        for at in range(start, stop, tile):
            hasher.add(memoryview(data)[at : min(at + tile, stop)])
        assert sorted(hasher.found) == list(blocks_within(start, stop, len(data)))
        found.add(tensor(len(data)), hasher.found)
    missing = found.missing(tensor(len(data)))
    found.add(tensor(len(data)), {b: xxh3_128(data[b * BLOCK : (b + 1) * BLOCK]).digest() for b in missing})
    assert found["x"] == definition(data)


@given(st.binary(max_size=100), st.tuples(st.integers(0, 100), st.integers(0, 100)), st.data())
def test_pieces_come_in_any_order(data: bytes, ends: tuple[int, int], draw: st.DataObject) -> None:
    start, stop = (min(end, len(data)) for end in sorted(ends))
    inner = draw.draw(st.lists(st.integers(start, stop), max_size=8))
    pieces = list(pairwise(sorted({start, stop, *inner})))
    hasher = PieceHasher(start, stop, len(data))
    in_order = BlockHasher(start, len(data))
    in_order.add(memoryview(data)[start:stop])
    for first, end in draw.draw(st.permutations(pieces)):
        piece = bytearray(data[first:end])
        hasher.add(first, memoryview(piece))
        piece[:] = b"?" * len(piece)  # the buffer is used again
    assert hasher.found == in_order.found
    assert sorted(hasher.found) == list(blocks_within(start, stop, len(data)))


def test_pieces_from_several_threads() -> None:
    data = random.Random(1).randbytes(3000)
    pieces = [(at, memoryview(data)[at : at + 7]) for at in range(0, len(data), 7)]
    hasher = PieceHasher(0, len(data), len(data))
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(hasher.add, at, piece) for at, piece in pieces]:
            done.result()
    assert tensor_digest(hasher.found, len(data)) == definition(data)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_stored_blocks_have_the_same_hashes(data: bytes, draw: st.DataObject) -> None:
    offset = draw.draw(st.integers(0, 20))
    path = Path(os.devnull)
    file = os.memfd_create("stored") if hasattr(os, "memfd_create") else os.open(path, os.O_RDWR)
    try:
        os.write(file, b"." * offset + data)
        blocks = hash_stored(file, offset, len(data), blocks_within(0, len(data), len(data)))
        assert tensor_digest(blocks, len(data)) == definition(data)
        os.ftruncate(file, offset + len(data) - 1)
        last = (len(data) - 1) // BLOCK
        assert last not in hash_stored(file, offset, len(data), [last])
    finally:
        os.close(file)


@given(st.binary(min_size=1, max_size=100), st.integers(0), st.integers(1, 255))
def test_another_byte_is_another_digest(data: bytes, place: int, change: int) -> None:
    other = bytearray(data)
    other[place % len(data)] ^= change
    assert definition(bytes(other)) != definition(data)
    hasher = BlockHasher(0, len(data))
    hasher.add(memoryview(other))
    assert tensor_digest(hasher.found, len(data)) == definition(bytes(other))
