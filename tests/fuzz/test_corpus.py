"""What fuzzing has found, and inputs near it, end in success or in a MergeError, soon and in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.mutations import mutated
from fuzz.targets import TARGETS, outcome, prepare

import mergecore
from mergecore.errors import MergeError

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))
MOST_BYTES = 100_000_000
MOST_S = 30
"""A machine may be slow: this is against what never ends."""
MUTATIONS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, where the targets find what they need."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder)
        yield folder


def bounded(target: str, data: bytes, folder: Path) -> MergeError | None:
    """The outcome, which must come soon and without much memory."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        error = outcome(target, data, folder)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST_BYTES
    assert time.monotonic() - began < MOST_S
    return error


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_each_file_of_the_corpus(path: Path, folder: Path) -> None:
    """Those whose names begin with `whole` are what a user may give; the others are broken."""
    error = bounded(path.parent.name, path.read_bytes(), folder)
    assert (error is None) == path.name.startswith("whole"), error


@pytest.mark.parametrize("target", ["index", "adapter", "tokenizer", "manifest"])
def test_what_is_near_to_the_corpus(target: str, folder: Path) -> None:
    draw = random.Random(target)
    whole = [path.read_bytes() for path in sorted((CORPUS / target).glob("whole*"))]
    errors = [bounded(target, mutated(draw.choice(whole), draw) or b"", folder) for _ in range(MUTATIONS)]
    assert 0 < sum(error is not None for error in errors) < MUTATIONS


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in FILES} == TARGETS.keys()
    assert all(any((CORPUS / target).glob("whole*")) for target in TARGETS)


def test_a_target_that_crashes_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergecore.errors.MergeError, "raise_if_any", lambda problems: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outcome("config", b"a: 1", folder)
