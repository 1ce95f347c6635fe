"""Files that are read and written by position: no more are open than may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergecore.plan.plan import Shard
from mergecore.stream.reader import Files
from mergecore.stream.writer import ShardFiles, partial_path

DESCRIPTORS = Path("/proc/self/fd")
pytestmark = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="the system doesn't list open files")


def open_files() -> int:
    return len(list(DESCRIPTORS.iterdir()))


def test_reading(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(bytes([i]))
    before, into = open_files(), bytearray(1)
    with Files(most_open=2) as files:
        for i in (*range(5), *range(5)):
            files.read(str(tmp_path / f"{i}"), 0, memoryview(into))
            assert into[0] == i
            assert open_files() <= before + 2
    assert open_files() == before


def test_writing(tmp_path: Path) -> None:
    shards = [Shard(f"{i}", b"", 2) for i in range(5)]
    for shard in shards:
        partial_path(tmp_path, shard).write_bytes(b"..")
    before, output = open_files(), ShardFiles(tmp_path, shards, most_open=2)
    for at in range(2):
        for i in range(5):
            output.write(i, at, memoryview(b"%d" % i))
            assert open_files() <= before + 2
    output.close()
    assert open_files() == before
    assert [partial_path(tmp_path, shard).read_bytes() for shard in shards] == [b"%d%d" % (i, i) for i in range(5)]
