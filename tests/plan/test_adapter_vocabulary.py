"""Adapters that hold embeddings as a whole: their tokens are those of the model, in rows, config.json and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from small_vocabularies import TEXTS, save_model, tensors, train, with_added
from tokenizers import Tokenizer
from torch import Tensor

import mergecore
from mergecore import PlanError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNION = {"tokenizer": {"source": "union"}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", train("BPE", TEXTS["a"]), 0)


@pytest.fixture
def larger(base: Path) -> Tokenizer:
    """The base's tokenizer with two more tokens."""
    return with_added(Tokenizer.from_file(str(base / "tokenizer.json")), "<one>", "<two>")


def write_adapter(folder: Path, tables: dict[str, Tensor], tokenizer: Tokenizer | None = None, **config: Any) -> Path:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": table for name, table in tables.items()}, folder / "adapter_model.safetensors"
    )
    facts = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": ["embed_tokens", "lm_head"]}
    (folder / "adapter_config.json").write_text(json.dumps(facts | config))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tables(rows: int) -> dict[str, Tensor]:
    """Embedding and head with so many rows."""
    found = tensors(rows, seed=5)
    return {name: found[name] for name in (EMBEDDING, HEAD)}


def rows_of(model: Path) -> int:
    return load_file(model / "model.safetensors")[EMBEDDING].shape[0]


def merged(out: Path, *models: object, **more: Any) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, int]]:
    """The tensors, config.json, and the numbers of the tokens."""
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    mergecore.merge({"merge_method": "linear", "models": entries, **more}, out, workers=0)
    config = json.loads((out / "config.json").read_text())
    return load_file(out / "model.safetensors"), config, Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()


def complaint(base: Path, adapter: Path) -> str:
    with pytest.raises(PlanError) as caught:
        mergecore.plan({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]})
    return str(caught.value)


@pytest.mark.parametrize("more", [{}, UNION, {"tokenizer": {"source": "base"}}], ids=["none", "union", "base"])
def test_added_tokens_are_merged(base: Path, larger: Tokenizer, tmp_path: Path, more: dict[str, Any]) -> None:
    n = larger.get_vocab_size()
    added = tables(n)
    adapter = write_adapter(tmp_path / "lora", added, larger)
    (base / "generation_config.json").write_text('{"eos_token_id": 1}')
    found, config, ids = merged(tmp_path / "out", f"{base}+{adapter}", **more)
    assert n == rows_of(base) + 2
    assert config["vocab_size"] == n
    assert ids == larger.get_vocab()
    for name, table in added.items():
        assert torch.equal(found[name], table)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 1}


def test_a_model_without_the_added_tokens_gets_their_rows(base: Path, larger: Tokenizer, tmp_path: Path) -> None:
    added = tables(larger.get_vocab_size())
    adapter = write_adapter(tmp_path / "lora", added, larger)
    found, config, ids = merged(tmp_path / "out", base, f"{base}+{adapter}", **UNION)
    assert config["vocab_size"] == len(ids) == larger.get_vocab_size()
    n = rows_of(base)
    assert ids["<two>"] == n + 1
    torch.testing.assert_close(found[EMBEDDING][n:], added[EMBEDDING][n:])
    of_base = load_file(base / "model.safetensors")[EMBEDDING]
    torch.testing.assert_close(found[EMBEDDING][:n], (of_base + added[EMBEDDING][:n]) / 2)


def test_different_numbers_of_tokens_are_an_error_without_a_tokenizer(
    base: Path, larger: Tokenizer, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "lora", tables(larger.get_vocab_size()), larger)
    with pytest.raises(PlanError, match=r"has different shapes: \[31, 8\] in .*base, \[33, 8\] in .*\+.*lora \(hint"):
        merged(tmp_path / "out", base, f"{base}+{adapter}")


def test_fewer_rows_and_rows_without_a_token(base: Path, larger: Tokenizer, tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", Tokenizer.from_file(str(base / "tokenizer.json")), 0, rows=64)
    n = larger.get_vocab_size()
    for rows in (n, n + 7, 128):
        adapter = write_adapter(tmp_path / f"lora{rows}", tables(rows), larger)
        found, config, ids = merged(tmp_path / f"out{rows}", f"{wide}+{adapter}")
        assert (config["vocab_size"], found[HEAD].shape[0], len(ids)) == (rows, rows, n)


def test_the_tokenizer_of_an_embedding_of_the_same_size(base: Path, tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", Tokenizer.from_file(str(base / "tokenizer.json")), 0, rows=64)
    (wide / "chat_template.jinja").write_text("the model's")
    larger = with_added(Tokenizer.from_file(str(base / "tokenizer.json")), "<one>")
    adapter = write_adapter(tmp_path / "lora", tables(64), larger)
    _, config, ids = merged(tmp_path / "out", f"{wide}+{adapter}")
    assert config["vocab_size"] == 64
    assert "<one>" in ids
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    (adapter / "tokenizer.json").unlink()
    _, _, ids = merged(tmp_path / "again", f"{wide}+{adapter}")
    assert "<one>" not in ids
    assert (tmp_path / "again" / "chat_template.jinja").exists()


def test_the_models_own_tokenizer_may_name_the_new_rows(base: Path, larger: Tokenizer, tmp_path: Path) -> None:
    larger.save(str(base / "tokenizer.json"))
    adapter = write_adapter(tmp_path / "lora", tables(larger.get_vocab_size()))
    _, config, ids = merged(tmp_path / "out", f"{base}+{adapter}", **UNION)
    assert config["vocab_size"] == len(ids) == larger.get_vocab_size()


def test_nobody_has_a_tokenizer(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    adapter = write_adapter(tmp_path / "lora", tables(40))
    config = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    mergecore.merge(config, tmp_path / "out", workers=0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 40


def test_an_adapter_on_the_hub_brings_its_tokenizer(
    hub: HubServer, base: Path, larger: Tokenizer, tmp_path: Path
) -> None:
    hub.add("org/base", base)
    hub.add("org/lora", write_adapter(tmp_path / "lora", tables(larger.get_vocab_size()), larger))
    (base / "generation_config.json").write_text("{}")
    _, config, ids = merged(tmp_path / "out", "org/base+org/lora", **UNION)
    assert config["vocab_size"] == len(ids) == larger.get_vocab_size()


class TestAsInPeft:
    """Adapters that PEFT itself has written, for a model that got two tokens more."""

    @pytest.mark.parametrize(
        ("tied", "options"),
        [
            (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
            (False, {"modules_to_save": ["embed_tokens"]}),
            (False, {}),
            (False, {"target_modules": ["embed_tokens", "lm_head"]}),
            (True, {}),
        ],
        ids=str,
    )
    def test_gives_what_peft_gives(
        self, base: Path, larger: Tokenizer, tmp_path: Path, tied: bool, options: dict[str, Any]
    ) -> None:
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
        if tied:
            base = save_model(tmp_path / "tied", Tokenizer.from_file(str(base / "tokenizer.json")), 0, tied=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(larger.get_vocab_size())
        torch.manual_seed(0)
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
        )
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.1)
        tuned.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
        larger.save(str(tmp_path / "lora" / "tokenizer.json"))
        found, config, _ = merged(tmp_path / "out", f"{base}+{tmp_path / 'lora'}")
        assert config["vocab_size"] == larger.get_vocab_size()
        assert config["tie_word_embeddings"] is tied
        expected = tuned.merge_and_unload().state_dict()
        assert expected.keys() - found.keys() == ({HEAD} if tied else set())
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


class TestMessages:
    def test_a_table_that_is_missing(self, base: Path, larger: Tokenizer, tmp_path: Path) -> None:
        n = larger.get_vocab_size()
        adapter = write_adapter(tmp_path / "lora", {EMBEDDING: tables(n)[EMBEDDING]}, larger)
        assert complaint(base, adapter) == (
            f"{adapter}: with it `{HEAD}` has {n - 2} rows, but `{EMBEDDING}` {n} "
            "(hint: an adapter with other tokens must hold all tables with a row for each)"
        )

    def test_a_tokenizer_with_more_tokens_than_rows(self, base: Path, larger: Tokenizer, tmp_path: Path) -> None:
        n = larger.get_vocab_size()
        adapter = write_adapter(tmp_path / "lora", tables(n - 1), larger)
        assert complaint(base, adapter) == (
            f"{adapter}: with it `{EMBEDDING}` has {n - 1} rows, but the tokenizer {n} tokens "
            "(hint: put the tokenizer that it was trained with into its folder)"
        )

    def test_no_tokenizer(self, base: Path, tmp_path: Path) -> None:
        n = rows_of(base)
        adapter = write_adapter(tmp_path / "lora", tables(n + 2))
        assert complaint(base, adapter) == (
            f"{adapter}: its `{EMBEDDING}` has {n + 2} rows, 2 more than the model's, and no tokenizer names them "
            "(hint: put the tokenizer that it was trained with into its folder)"
        )

    def test_other_shapes(self, base: Path, tmp_path: Path) -> None:
        for name, tensor, expected in (
            ("model.norm.weight", torch.ones(9), [8]),
            (EMBEDDING, torch.ones(31, 9), [31, 8]),
        ):
            adapter = write_adapter(tmp_path / name, {name: tensor})
            assert complaint(base, adapter) == (
                f"{adapter}: its `{name}` is {list(tensor.shape)}, but the model's tensor is {expected} "
                "(hint: was the adapter trained on this very model?)"
            )
