"""Tokenizers that are not in tokenizer.json: one is made, by transformers unless they are ranks of tiktoken's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from small_vocabularies import AS_OF_LLAMA, TEXTS, train, train_ranks, train_sentencepiece
from tokenizers import Tokenizer

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


LLAMA = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
OWN_CODE = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}


def folder_with(folder: Path, name: str, content: bytes, settings: dict[str, object] | None = None) -> Path:
    (folder / name).write_bytes(content)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("name", "options", "settings", "kind"),
    [
        ("tokenizer.model", AS_OF_LLAMA, LLAMA, "BPE"),
        ("spiece.model", {"kind": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, T5, "Unigram"),
        ("sentencepiece.bpe.model", {"kind": "unigram"}, {"tokenizer_class": "XLMRobertaTokenizer"}, "Unigram"),
    ],
)
def test_sentencepiece_models(tmp_path: Path, name: str, options: dict[str, Any], settings: Any, kind: str) -> None:
    content = train_sentencepiece(TEXTS["b"], **options)
    read = Reader().read(TokenizerFiles(folder_with(tmp_path, name, content, settings)))
    assert read is not None
    made = Tokenizer.from_str(json.dumps(read[1].data))
    model = SentencePieceProcessor(model_proto=content)
    assert read[1].kind == kind
    for text in (*TEXTS["b"], "other words"):
        assert made.encode(text, add_special_tokens=False).tokens == model.encode(text, out_type=str)
    if name != "sentencepiece.bpe.model":  # its numbers are shifted, as the model's rows are
        assert all(read[1].ids[model.id_to_piece(i)] == i for i in range(model.get_piece_size()))


def test_a_class_that_does_not_fit_is_found(tmp_path: Path) -> None:
    """transformers makes something of it, with which the model would read other tokens than it was trained on."""
    unnamed = folder_with(tmp_path, "tokenizer.model", train_sentencepiece(TEXTS["b"], **AS_OF_LLAMA))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError) as caught:
        Reader().read(TokenizerFiles(unnamed))
    count = re.search(r"cuts (\d+) of (\d+) words \('(\w+)', ", str(caught.value))
    assert count is not None
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.model'}: cuts {count[1]} of {count[1]} words ('{count[3]}', ...) in other ways than "
        "the tokenizer.json that transformers makes of it (hint: does tokenizer_config.json name the right class, such "
        'as {"tokenizer_class": "LlamaTokenizer"}?)'
    )


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "qwen.tiktoken"])
def test_ranks_need_no_other_package(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    settings = {**OWN_CODE, "tokenizer_class": "QWenTokenizer"} if name == "qwen.tiktoken" else {"bos_token": "<s>"}
    read = Reader().read(TokenizerFiles(folder_with(tmp_path, name, train_ranks(TEXTS["b"]), settings)))
    assert read is not None
    assert read[1].kind == "BPE"
    assert ("<|im_end|>" in read[1].added) is (name == "qwen.tiktoken")
    found = json.loads(read[0].content("tokenizer_config.json"))
    assert found == ({} if name == "qwen.tiktoken" else settings) | {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    ("name", "missing", "needed"),
    [
        ("vocab.json", ["transformers"], "transformers"),
        ("tokenizer.model", ["transformers", "sentencepiece"], "transformers and sentencepiece"),
        ("spiece.model", ["google.protobuf"], "protobuf"),
    ],
)
def test_what_is_missing(tmp_path: Path, name: str, missing: list[str], needed: str, monkeypatch) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PlanError) as caught:
        Reader().read(TokenizerFiles(folder_with(tmp_path, name, b"\n")))
    assert str(caught.value) == (
        f"{tmp_path}: has {name} but no tokenizer.json, and reading it needs {needed} "
        "(hint: pip install 'mergecore-triton[tokenizer]')"
    )


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "tokenizer_config.json"])
@pytest.mark.parametrize("auto_map", [OWN_CODE["auto_map"], ["tokenization_own.OwnTokenizer", None]])
def test_code_of_a_model_is_not_run(tmp_path: Path, name: str, auto_map: object) -> None:
    content = train_ranks(TEXTS["b"]) if name == "tiktoken.model" else b"\n"
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(PlanError) as caught:
        Reader().read(TokenizerFiles(folder_with(tmp_path, name, content, OWN_CODE | {"auto_map": auto_map})))
    assert str(caught.value) == (
        f"{tmp_path}: has {name} but no tokenizer.json, and its tokenizer is code of its own, which is not run "
        "(hint: put a tokenizer.json into the folder: other repositories of the model may have one)"
    )


def test_what_is_no_sentencepiece_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Reader().read(TokenizerFiles(folder_with(tmp_path, "tokenizer.model", b"something else")))
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.model'}: is neither a SentencePiece model nor a file of tiktoken's ranks"
    )


def test_what_transformers_can_not_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        Reader().read(TokenizerFiles(folder_with(tmp_path, "vocab.json", b"{", {"tokenizer_class": "GPT2Tokenizer"})))
    found = str(caught.value)
    assert found.startswith(f"{tmp_path}: has no tokenizer.json, and transformers can't make one of vocab.json: ")
    assert found.endswith(" (hint: put a tokenizer.json into the folder)")
    assert "\n" not in found
