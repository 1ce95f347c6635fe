"""Space that is reserved before a file is filled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergecore.stream import positional_io

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system can't reserve space")

MOUNTS = """22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:27 / /mnt/far rw shared:5 - {} server:/models rw,vers=3
"""


@pytest.mark.parametrize(("kind", "reserves"), [("ext4", True), ("xfs", True), ("tmpfs", False), ("nfs4", False)])
def test_where_the_file_system_is_quick(
    kind: str, reserves: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reserved: list[int] = []
    stat = os.stat_result([0, 0, os.makedev(0, 27), 0, 0, 0, 0, 0, 0, 0])
    monkeypatch.setattr(os, "posix_fallocate", lambda file, at, n_bytes: reserved.append(n_bytes))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: MOUNTS.format(kind))
    with (tmp_path / "file").open("wb") as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", lambda _: stat)
            positional_io.reserve(file.fileno(), 1000)
        assert os.fstat(file.fileno()).st_size == 1000
    assert reserved == ([1000] if reserves else [])


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    with (tmp_path / "file").open("wb") as file:
        positional_io.reserve(file.fileno(), 1000)
        assert os.fstat(file.fileno()).st_size == 1000
