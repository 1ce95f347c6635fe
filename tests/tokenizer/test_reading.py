"""Where the tokenizer of a model is, and that it is read once."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_vocabularies import TEXTS, train

from mergecore import CheckpointError
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.tokenizer.reading import Reader


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    assert Reader().read(TokenizerFiles(tmp_path)) is None


def test_the_same_tokenizer_is_read_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        train("BPE", TEXTS["a"]).save(str(tmp_path / name / "tokenizer.json"))
    reader = Reader()
    first, second = (reader.read(TokenizerFiles(tmp_path / name)) for name in "ab")
    assert first is not None
    assert second is not None
    assert first[1] is second[1]


def test_a_file_that_can_not_be_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match="tokenizer.json: can't be read: Permission denied"):
        Reader().read(TokenizerFiles(tmp_path))


def test_files_that_take_the_place_of_others(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_text("old")
    files = TokenizerFiles(tmp_path).replaced({"tokenizer.json": {"é": 1}}, frozenset({"vocab.json"}))
    assert files.read("tokenizer.json") == '{"é":1}\n'.encode()
    assert files.read("vocab.json") is None
    assert not files.has("vocab.json")
    assert files.read("merges.txt") == b"old"
    assert {"tokenizer.json", "vocab.json"}.isdisjoint(files.copied)
    again = files.replaced({"vocab.json": {"a": 1}}, frozenset({"tokenizer.json"}))
    assert again.read("tokenizer.json") is None
    assert again.read("vocab.json") == b'{\n  "a": 1\n}\n'
