"""Digests of the tensors that are written, by which damage is found later.

A tensor's digest is the hash of the hashes of its blocks. Blocks are counted from the tensor's start, so the digest
doesn't depend on which worker wrote which part of it, and when. The hash is XXH3 with 128 bits, which is many times
faster than reading memory: it finds what disks, cables and copies do to bytes, not what someone does on purpose.
Source: https://github.com/Cyan4973/xxHash
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock

from xxhash import xxh3_128

from mergecore.plan.plan import OutputTensor
from mergecore.stream.positional_io import read_at

BLOCK = 1 << 20
"""Bytes."""


class BlockHasher:
    """Hashes the blocks of a tensor while a run of its bytes passes by."""

    def __init__(self, start: int, n_bytes: int) -> None:
        """The run begins at the byte `start` of the tensor, which has `n_bytes`."""
        self.found: dict[int, bytes] = {}
        """Hashes of the blocks that were in the run as a whole."""
        self._at = start
        self._n_bytes = n_bytes
        self._from_start = start % BLOCK == 0
        self._hash = xxh3_128()

    def add(self, data: memoryview) -> None:
        """The bytes that come next."""
        for _, part in _cut_at_blocks(self._at, data):
            self._hash.update(part)
            self._at += len(part)
            if self._at % BLOCK == 0 or self._at == self._n_bytes:
                self._end_block()

    def _end_block(self) -> None:
        if self._from_start:
            self.found[(self._at - 1) // BLOCK] = self._hash.digest()
        self._from_start = True
        self._hash.reset()


class PieceHasher:
    """Hashes the blocks of a run of a tensor's bytes, whose pieces come in any order, from several threads.

    Blocks that lie in several pieces are copied, and kept until they are whole.
    """

    def __init__(self, start: int, stop: int, n_bytes: int) -> None:
        """The run is the bytes [start, stop) of the tensor, which has `n_bytes`."""
        self.found: dict[int, bytes] = {}
        """Hashes of the blocks that lie in the run as a whole, as far as their pieces have come."""
        self._blocks = blocks_within(start, stop, n_bytes)
        self._n_bytes = n_bytes
        self._begun: dict[int, dict[int, bytes]] = {}
        """By block: the fragments of it that have come, by where they begin in it."""
        self._lock = Lock()

    def add(self, start: int, data: memoryview) -> None:
        """A piece, which begins at the byte `start` of the tensor. Every byte comes once."""
        for at, part in _cut_at_blocks(start, data):
            block = at // BLOCK
            if block not in self._blocks:
                continue
            if len(part) == self._size(block):
                self.found[block] = xxh3_128(part).digest()
            else:
                self._add_fragment(block, at % BLOCK, part)

    def _add_fragment(self, block: int, at: int, part: memoryview) -> None:
        copy = bytes(part)
        with self._lock:
            fragments = self._begun.setdefault(block, {})
            fragments[at] = copy
            if sum(map(len, fragments.values())) < self._size(block):
                return
            del self._begun[block]
        whole = xxh3_128()
        for begin in sorted(fragments):
            whole.update(fragments[begin])
        self.found[block] = whole.digest()

    def _size(self, block: int) -> int:
        return min(BLOCK, self._n_bytes - block * BLOCK)


def _cut_at_blocks(start: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(where it begins, its bytes) of each part of some bytes that lies in one block."""
    while len(data):
        room = BLOCK - start % BLOCK
        part, data = data[:room], data[room:]
        yield start, part
        start += len(part)


def block_count(n_bytes: int) -> int:
    """Of a tensor; the last block may be shorter than the others."""
    return -(-n_bytes // BLOCK)


def blocks_within(start: int, stop: int, n_bytes: int) -> range:
    """The blocks of a tensor that lie as a whole between its bytes `start` and `stop`."""
    return range(block_count(start), block_count(n_bytes) if stop == n_bytes else stop // BLOCK)


def hash_stored(file: int, offset_bytes: int, n_bytes: int, blocks: Iterable[int]) -> dict[int, bytes]:
    """The hashes of some blocks of a tensor that lies at `offset_bytes` of an open file. Raises OSError.

    A block that the file doesn't hold as a whole is left out.
    """
    buffer = memoryview(bytearray(min(BLOCK, n_bytes)))
    found = {}
    for block in blocks:
        part = buffer[: min(BLOCK, n_bytes - block * BLOCK)]
        if read_at(file, part, offset_bytes + block * BLOCK) == len(part):
            found[block] = xxh3_128(part).digest()
    return found


class Digests:
    """The digests of many tensors, put together as their blocks come."""

    def __init__(self) -> None:
        self._blocks: dict[str, dict[int, bytes]] = {}
        self._whole: dict[str, str] = {}

    def add(self, tensor: OutputTensor, blocks: Mapping[int, bytes]) -> None:
        """Hashes of some of a tensor's blocks, perhaps not for the first time."""
        if tensor.name in self._whole:
            return
        found = self._blocks.setdefault(tensor.name, {})
        found.update(blocks)
        if len(found) == block_count(tensor.n_bytes):
            self._whole[tensor.name] = tensor_digest(found, tensor.n_bytes)
            del self._blocks[tensor.name]

    def missing(self, tensor: OutputTensor) -> list[int]:
        """The blocks that lack: those that lie in several jobs."""
        if tensor.name in self._whole:
            return []
        found = self._blocks.get(tensor.name, {})
        return [block for block in range(block_count(tensor.n_bytes)) if block not in found]

    def __getitem__(self, tensor: str) -> str:
        """Of a tensor that has all blocks."""
        return self._whole[tensor]


def tensor_digest(blocks: Mapping[int, bytes], n_bytes: int) -> str:
    """From the hashes of all blocks, in hexadecimal."""
    return xxh3_128(b"".join(blocks[block] for block in range(block_count(n_bytes)))).hexdigest()
