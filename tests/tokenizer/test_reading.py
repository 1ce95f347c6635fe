"""Tokenizers that are not in tokenizer.json: transformers makes one, if it is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_vocabularies import TEXTS, train

from mergecore import CheckpointError, PlanError
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.tokenizer.reading import Reader


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A folder with vocab.json and merges.txt, as of GPT-2."""
    model = json.loads(train("BPE", TEXTS["a"], special=["<|endoftext|>"]).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return tmp_path


def test_tokenizer_json_is_made(gpt2: Path) -> None:
    read = Reader().read(TokenizerFiles(gpt2))
    assert read is not None
    files, tokenizer = read
    assert tokenizer.kind == "BPE"
    assert tokenizer.ids.items() >= json.loads((gpt2 / "vocab.json").read_text()).items()
    assert files.read("tokenizer.json")
    assert not (gpt2 / "tokenizer.json").exists()


def test_transformers_is_missing(gpt2: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PlanError) as caught:
        Reader().read(TokenizerFiles(gpt2))
    assert str(caught.value) == (
        f"{gpt2}: has vocab.json but no tokenizer.json, and transformers is needed to read it "
        "(hint: pip install 'mergecore-triton[tokenizer]')"
    )


def test_what_transformers_can_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no SentencePiece model")
    with pytest.raises(
        PlanError, match=r"has no tokenizer.json, and transformers can't make one of tokenizer.model: .*"
    ):
        Reader().read(TokenizerFiles(tmp_path))


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
