"""Files in the page cache, and out of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mergecore import RunError
from mergecore.prediction import page_cache
from mergecore.prediction.page_cache import drop, require_dropping, warm
from mergecore.stream.writer import sync_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop a file")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    sync_file(path)
    return path


def is_cached(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return not page_cache.must_wait_for(descriptor, 1 << 19)
    finally:
        os.close(descriptor)


def test_drop_and_warm(file: Path) -> None:
    require_dropping()
    assert is_cached(file)
    try:
        drop([file])
    except RunError:
        pytest.skip("temporary files don't lie on a disk here")
    assert not is_cached(file)
    warm([file])
    assert is_cached(file)


@pytest.mark.parametrize("error", [None, OSError(95, "Operation not supported")])
def test_what_stays_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    def read(*arguments: Any) -> int:
        if error:
            raise error
        return 1

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(RunError, match="--cold: `.*weights` stays in the page cache .hint: name a --folder on a disk"):
        drop([file])


def test_systems_that_cannot_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(RunError, match="--cold: this system can't drop files from its page cache .hint: Linux can"):
        require_dropping()
