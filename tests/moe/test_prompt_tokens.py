"""The tokens of prompts are those that transformers gives for the beginning token and the prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import KINDS, TEXTS, train
from tokenizers import processors

from mergecore.errors import CheckpointError, PlanError
from mergecore.moe.prompt_tokens import PromptTokenizer

PROMPTS = ["the cat sat", " a hat ", "hello <s> world", "", "unknown Ω\n"]


def save(folder: Path, kind: str = "BPE", **settings: Any) -> Path:
    """A model folder without a model. Its tokenizer has a mind of its own as to lengths and special tokens."""
    tokenizer = train(kind, TEXTS["a"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path, kind, bos_token="<s>")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = PromptTokenizer(folder)
    for prompt in PROMPTS:
        assert list(ours.tokens(prompt)) == theirs("<s>" + prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"bos_token": "<s>"}, 0),
        ({"bos_token": {"content": "</s>", "lstrip": False}}, 1),
        ({"bos_token": None}, None),
        ({}, None),
    ],
)
def test_beginning(settings: dict[str, Any], first: int | None, tmp_path: Path) -> None:
    found = PromptTokenizer(save(tmp_path, **settings)).tokens("the cat")
    bare = PromptTokenizer(save(tmp_path / "bare")).tokens("the cat")
    assert found == (bare if first is None else (first, *bare))


def test_beginning_is_told_in_another_file(tmp_path: Path) -> None:
    folder = save(tmp_path)
    (folder / "special_tokens_map.json").write_text('{"bos_token": "</s>"}')
    assert PromptTokenizer(folder).tokens("the")[0] == 1
    save(tmp_path, bos_token="<s>")
    assert PromptTokenizer(folder).tokens("the")[0] == 0


def test_beginning_that_is_no_added_token(tmp_path: Path) -> None:
    """As in tokenizers that were converted from other formats."""
    folder = save(tmp_path, bos_token="<s>")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][1:]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert PromptTokenizer(folder).tokens("the cat")[0] == 0


def test_prompt_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        PromptTokenizer(save(tmp_path)).tokens("")
    assert str(caught.value) == f"the prompt '' has no token with the tokenizer of {tmp_path}"


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        PromptTokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: has no tokenizer, and prompts are to be read with it "
        "(hint: copy tokenizer.json and tokenizer_config.json from a model with the same vocabulary)"
    )


def test_broken_tokenizer(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPX", "vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(CheckpointError, match=r"^.*/tokenizer.json: is no tokenizer: .+$"):
        PromptTokenizer(tmp_path)


@pytest.mark.parametrize("token", [1, ["<s>"], {"content": 1}])
def test_beginning_that_is_no_text(token: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        PromptTokenizer(save(tmp_path, bos_token=token))
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer_config.json'}: `bos_token` should be the text of a token, found {token!r}"
    )


def test_tokenizers_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(PlanError) as caught:
        PromptTokenizer(save(tmp_path))
    assert str(caught.value) == (
        "reading prompts needs tokenizers, which is not installed (hint: pip install 'mergecore-triton[tokenizer]')"
    )
