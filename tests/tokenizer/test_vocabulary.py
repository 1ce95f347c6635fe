"""Merges that bring vocabularies together, from the config to a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from small_family import same_bytes
from small_vocabularies import (
    AS_OF_LLAMA,
    KINDS,
    TEXTS,
    save_model,
    train,
    train_ranks,
    train_sentencepiece,
    with_added,
)
from tokenizers import AddedToken, Tokenizer

import mergecore
from mergecore import MergeError, PlanError
from mergecore.stream import budget, execute

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Three of the kind BPE, each with words and added tokens of its own."""
    return {name: save_model(tmp_path / name, tokenizer(name), seed) for seed, name in enumerate("abc")}


def tokenizer(name: str, kind: str = "BPE") -> Tokenizer:
    return with_added(train(kind, TEXTS[name]), f"<{name}>", special=True)


def config(*models: Path, method: str = "linear", tokenizer: Any = None, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return {"merge_method": method, "models": entries, "tokenizer": tokenizer or {"source": "union"}, **more}


def merged(config: dict[str, Any], out: Path, **options: Any) -> tuple[mergecore.Result, dict[str, torch.Tensor]]:
    result = mergecore.merge(config, out, **{"workers": 0} | options)
    return result, {k: w for file in out.glob("*.safetensors") for k, w in load_file(file).items()}


def complaint(config: dict[str, Any], **options: Any) -> str:
    with pytest.raises(MergeError) as caught:
        mergecore.plan(config, **options)
    return str(caught.value)


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def model_of_kind(kind: str, folder: Path, name: str, seed: int) -> Path:
    """One with added tokens that others have too: `<new>` with other flags, `at` as a token of the model."""
    flags = {"lstrip": name == "b", "rstrip": False, "normalized": False, "single_word": False, "special": name == "c"}
    added = {f"<{name}>": flags, "<new>": flags, **({"at": {**flags, "single_word": True}} if name == "c" else {})}
    if kind in KINDS:
        tokenizer = train(kind, TEXTS[name])
        tokenizer.add_tokens([AddedToken(text, **of_one) for text, of_one in added.items()])
        return save_model(folder, tokenizer, seed)
    is_ranks = kind == "tiktoken"
    content = train_ranks(TEXTS[name]) if is_ranks else train_sentencepiece(TEXTS[name], **AS_OF_LLAMA)
    first = len(content.splitlines()) if is_ranks else SentencePieceProcessor(model_proto=content).get_piece_size()
    save_model(folder, None, seed, rows=first + len(added))
    (folder / "tokenizer.model").write_bytes(content)
    decoder = {str(first + i): {"content": text, **of_one} for i, (text, of_one) in enumerate(added.items())}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast" if is_ranks else "LlamaTokenizer", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": decoder}))
    return folder


@pytest.mark.parametrize("kind", [*KINDS, "SentencePiece", "tiktoken"])
@pytest.mark.parametrize("names", ["ab", "cba"])
def test_transformers_loads_what_comes_out(kind: str, names: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [model_of_kind(kind, tmp_path / name, name, seed) for seed, name in enumerate(names)]
    result, _ = merged(config(*folders, tokenizer={"source": "union", "pad_to_multiple_of": 16}), tmp_path / "out")
    vocabulary = result.plan.vocabulary
    assert vocabulary is not None
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(loaded) == vocabulary.n_tokens
    assert loaded.get_vocab() == Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    assert (loaded.bos_token, loaded.eos_token) == ((None, None) if kind == "tiktoken" else ("<s>", "</s>"))
    for name in names:
        for text in TEXTS[name]:
            ids = loaded.encode(text, add_special_tokens=False)
            assert loaded.decode(ids) == text
            with_new = loaded.encode(f"{text}<{name}><new>", add_special_tokens=False)
            assert [loaded.convert_ids_to_tokens(i) for i in with_new[-2:]] == [f"<{name}>", "<new>"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == vocabulary.n_rows == model.config.vocab_size
    assert model(torch.tensor([loaded.encode(f"the cat<{names[-1]}>")])).logits.shape[-1] == vocabulary.n_rows


def test_logits_of_a_model_whose_rows_alone_are_taken(models: dict[str, Path], tmp_path: Path) -> None:
    """All of b in the vocabulary of a and b: b's tokens have b's logits, on b's texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = config(models["a"], models["b"])
    asked["models"][0]["parameters"]["weight"] = 0.0
    merged(asked, tmp_path / "out")
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (models["b"], tmp_path / "out"))
    text = "<b>" + TEXTS["b"][0]
    ids = [new.convert_tokens_to_ids(token) for token in old.tokenize(text)]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([numbers])).logits[0]
        for folder, numbers in ((models["b"], old.encode(text, add_special_tokens=False)), (tmp_path / "out", ids))
    )
    known = old.get_vocab()
    torch.testing.assert_close(after[:, [new.get_vocab()[t] for t in known]], before[:, list(known.values())])


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_tokens_that_one_model_owns(tied: bool, tmp_path: Path) -> None:
    """Where models differ in their embeddings only, each one's own tokens get its own logits after its own texts."""
    from transformers import AutoModelForCausalLM

    folders = [save_model(tmp_path / name, tokenizer(name), seed, tied=tied) for seed, name in enumerate("ab")]
    body, embeddings = (load_file(folder / "model.safetensors") for folder in folders)
    for name in {EMBEDDING, HEAD} & body.keys():
        body[name] = embeddings[name]
    save_file(body, folders[1] / "model.safetensors", metadata={"format": "pt"})
    merged(config(*folders), tmp_path / "out")
    *old, new = (
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (*folders, tmp_path / "out")
    )
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for folder, ids, others in zip(folders, old, old[::-1], strict=True):
        own = sorted(ids.keys() - others.keys())
        before = AutoModelForCausalLM.from_pretrained(folder)
        numbers, in_output = ([vocabulary[token] for token in own] for vocabulary in (ids, new))
        assert len(own) > 5
        torch.testing.assert_close(
            after(torch.tensor([in_output])).logits[0][:, in_output],
            before(torch.tensor([numbers])).logits[0][:, numbers],
        )


def test_rows_of_a_token_that_one_model_has_are_copied_bit_for_bit(tmp_path: Path) -> None:
    folders = [save_model(tmp_path / n, tokenizer(n), seed, dtype=torch.bfloat16) for seed, n in enumerate("ab")]
    result, weights = merged(config(*folders), tmp_path / "out")
    ids = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    vocabularies = [Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in folders]
    assert result.plan.dtype.torch_name == "bfloat16"
    for own, other, folder in zip(vocabularies, vocabularies[::-1], folders, strict=True):
        before = load_file(folder / "model.safetensors")
        alone = own.keys() - other.keys()
        assert alone
        for name in (EMBEDDING, HEAD):
            for text in alone:
                assert torch.equal(weights[name][ids[text]], before[name][own[text]])


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "nuslerp"])
def test_memory_jobs_and_workers_change_no_bit(
    method: str, models: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    parameters = {"t": 0.3} if method == "slerp" else {"density": 0.5} if "ties" in method else {}
    asked = config(models["a"], models["b"], method=method, parameters=parameters, base_model=str(models["a"]))
    if method == "nuslerp":
        asked["base_model"] = None
    asked["tokenizer"] = {"source": "union", "pad_to_multiple_of": 64}
    _, whole = merged(asked, tmp_path / "whole", seed=1)
    monkeypatch.setattr(budget, "CHUNK", 52)
    monkeypatch.setattr(execute, "SPAN", 300)
    least = budget.least_memory(mergecore.plan(asked, seed=1), workers=1)
    _, tiles = merged(asked, tmp_path / "tiles", seed=1, memory=least)
    assert same_bytes(whole, tiles)
    if method == "linear":
        assert same_bytes(whole, merged(asked, tmp_path / "processes", seed=1, workers=2)[1])


def test_a_worker_gets_only_what_it_needs_of_a_map(models: dict[str, Path], monkeypatch) -> None:
    plan = mergecore.plan(config(models["a"], models["b"]))
    monkeypatch.setattr(execute, "SPAN", 80)
    jobs = [job for job in execute.jobs(plan) if job.tensor.name == EMBEDDING]
    assert len(jobs) > 3
    assert sum(len(source.tensor.rows.rows) for job in jobs for source in job.tensor.sources) == sum(  # type: ignore[union-attr]
        len(rows.rows)
        for rows in plan.vocabulary.rows  # type: ignore[union-attr]
    )


def test_vocabularies_that_are_the_same_change_nothing(tmp_path: Path) -> None:
    folders = [save_model(tmp_path / name, tokenizer("a"), seed) for seed, name in enumerate("ab")]
    asked = config(*folders)
    plain = {key: value for key, value in asked.items() if key != "tokenizer"}
    assert mergecore.plan(asked).digest == mergecore.plan(plain).digest
    merged(asked, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folders[0] / name).read_bytes()


def test_models_with_tied_heads(tmp_path: Path) -> None:
    a = save_model(tmp_path / "a", tokenizer("a"), 0, tied=True)
    b = save_model(tmp_path / "b", tokenizer("b"), 1, tied=True)
    c = save_model(tmp_path / "c", tokenizer("c"), 2)
    _, tied = merged(config(a, b), tmp_path / "tied")
    assert HEAD not in tied
    result, mixed = merged(config(a, c), tmp_path / "mixed")
    ids = Tokenizer.from_file(str(tmp_path / "mixed" / "tokenizer.json")).get_vocab()
    of_a, of_c = (Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (a, c))
    in_a, in_c = load_file(a / "model.safetensors")[EMBEDDING], load_file(c / "model.safetensors")[HEAD]
    both = of_a.keys() & of_c.keys()
    expected = torch.stack([(in_a[of_a[text]] + in_c[of_c[text]]) / 2 for text in both])
    torch.testing.assert_close(mixed[HEAD][[ids[text] for text in both]], expected)
    assert read_json(tmp_path / "mixed" / "config.json")["tie_word_embeddings"] is False
    assert result.plan.vocabulary is not None


def test_the_order_of_models_is_that_of_the_config(models: dict[str, Path], tmp_path: Path) -> None:
    asked = config(models["c"], models["a"], models["b"])
    first, again = (mergecore.plan(asked) for _ in range(2))
    assert first.digest == again.digest
    assert first.tokenizer == again.tokenizer
    assert first.vocabulary is not None
    assert first.vocabulary.models[0].adds == first.vocabulary.models[0].has


def test_tokens_of_config_json_get_their_new_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    ids = {name: Tokenizer.from_file(str(models[name] / "tokenizer.json")).get_vocab() for name in "ab"}
    a = models["a"]
    changed = read_json(a / "config.json") | {"pad_token_id": ids["a"]["<a>"], "text_config": {"x_token_id": None}}
    changed |= {"eos_token_id": [1, ids["a"]["the"], ids["a"]["<a>"]], "image_token_index": 10**6, "use_token_id": True}
    (a / "config.json").write_text(json.dumps(changed))
    (a / "generation_config.json").write_text(json.dumps({"pad_token_id": ids["a"]["<a>"], "top_k": 5}))
    asked = config(a, models["b"], tokenizer={"source": str(models["b"])})
    result, _ = merged(asked, tmp_path / "out")
    found = read_json(tmp_path / "out" / "config.json")
    assert found["vocab_size"] == len(ids["b"])
    assert found["bos_token_id"] == 0
    assert found["pad_token_id"] is None
    assert found["eos_token_id"] == [1, ids["b"]["the"]]
    assert found["image_token_index"] == 10**6
    assert found["use_token_id"] is True
    assert read_json(tmp_path / "out" / "generation_config.json") == {"top_k": 5}
    assert f"config.json of {a} names tokens that are gone: pad_token_id" in result.plan.notes


def test_the_tokenizer_of_a_model_that_is_not_merged(models: dict[str, Path], tmp_path: Path) -> None:
    asked = config(models["a"], models["b"], tokenizer={"source": str(models["c"])})
    result, weights = merged(asked, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (models["c"] / "tokenizer.json").read_bytes()
    (note,) = result.plan.notes
    assert note.startswith("tokens that no model has a row for get zeros (")
    ids = Tokenizer.from_file(str(models["c"] / "tokenizer.json")).get_vocab()
    assert not weights[EMBEDDING][ids["<c>"]].any()


def test_the_output_is_not_written_over_the_tokenizer(models: dict[str, Path]) -> None:
    asked = config(models["a"], models["b"], tokenizer={"source": str(models["c"])})
    with pytest.raises(PlanError, match="c: holds files that the merge reads .hint: write to another folder"):
        mergecore.merge(asked, models["c"], workers=0, overwrite=True)


def test_files_that_name_tokens_follow(models: dict[str, Path], tmp_path: Path) -> None:
    a = models["a"]
    rows = len(Tokenizer.from_file(str(a / "tokenizer.json")).get_vocab())
    named = {
        "pad_token": "<a>",
        "added_tokens_decoder": {"0": {"content": "<s>"}},
        "additional_special_tokens": ["<a>", "<s>", ["<s>"], {"content": ["<s>"]}, 3],  # strangers write anything
    }
    settings = read_json(a / "tokenizer_config.json") | named
    (a / "tokenizer_config.json").write_text(json.dumps(settings))
    (a / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<a>"}, "bos_token": "<s>"}))
    (a / "vocab.json").write_text("{}")
    config_json = read_json(a / "config.json")
    (a / "config.json").write_text(json.dumps(config_json | {"vocab_size": rows - 1}))
    result, _ = merged(config(a, models["b"]), tmp_path / "out")
    found = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert "pad_token" not in found
    assert found["bos_token"] == "<s>"
    assert found["additional_special_tokens"] == ["<s>"]
    assert [token["content"] for token in found["added_tokens_decoder"].values()] == ["<s>", "</s>", "<unk>", "<b>"]
    assert read_json(tmp_path / "out" / "special_tokens_map.json") == {"bos_token": "<s>"}
    assert not (tmp_path / "out" / "vocab.json").exists()
    assert f"tokens without a row in {a} are left out (1): '<a>'" in result.plan.notes


def test_spare_rows_are_no_tokens(tmp_path: Path) -> None:
    """Many models have more rows than tokens."""
    a, b = (save_model(tmp_path / n, tokenizer(n), seed, rows=64) for seed, n in enumerate("ab"))
    result, weights = merged(config(a, b, tokenizer={"source": "base"}, base_model=str(a)), tmp_path / "out")
    assert len(weights[EMBEDDING]) == result.plan.vocabulary.n_tokens < 64  # type: ignore[union-attr]


def test_a_stage_takes_the_tokenizer_of_another(models: dict[str, Path], tmp_path: Path) -> None:
    first = config(models["a"], models["b"], name="first", chat_template="chatml")
    between = {"name": "between", "merge_method": "passthrough", "models": [{"model": "first"}]}
    last = config(Path("between"), models["c"])
    result = mergecore.merge([first, between, last], tmp_path / "out", workers=0)
    together = mergecore.plan(config(models["a"], models["b"], models["c"]))
    assert result.plan.vocabulary is not None
    assert together.vocabulary is not None
    assert result.plan.vocabulary.n_tokens == together.vocabulary.n_tokens
    loaded = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert {"<a>", "<b>", "<c>"} <= loaded.get_vocab().keys()
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_the_tokenizer_of_a_model_that_is_not_merged_is_no_link_to_a_secret(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes((models["c"] / "tokenizer.json").read_bytes())
    (models["c"] / "tokenizer.json").unlink()
    (models["c"] / "tokenizer.json").symlink_to(tmp_path / "secret")
    assert complaint(config(models["a"], tokenizer={"source": str(models["c"])})) == (
        f"{models['c'] / 'tokenizer.json'}: is a link to {tmp_path / 'secret'}, which is no file of a model "
        "(hint: put a copy in its place)"
    )


def test_models_on_the_hub(hub: HubServer, models: dict[str, Path], tmp_path: Path) -> None:
    """Only what a tokenizer consists of is downloaded for planning."""
    for name in "abc":
        hub.add(f"org/{name}", models[name])
    told: list[str] = []
    asked = config(Path("org/a"), Path("org/b"), tokenizer={"source": "org/c"})
    mergecore.plan(asked, on_download=lambda download: told.append(f"{download.model.repo}: {download.reason}"))
    assert told == [f"org/{name}: the tokenizer is needed to plan the merge" for name in "abc"]
    assert not list(tmp_path.glob("cache/**/*.safetensors"))
    result, _ = merged(asked, tmp_path / "out")
    assert result.plan.vocabulary is not None
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (models["c"] / "tokenizer.json").read_bytes()


def test_a_model_without_a_tokenizer_has_that_of_the_base(models: dict[str, Path], tmp_path: Path) -> None:
    (models["b"] / "tokenizer.json").unlink()
    (models["b"] / "tokenizer_config.json").unlink()
    plan = mergecore.plan(config(models["a"], models["b"]))
    assert f"{models['b']} has no tokenizer, and is taken to have that of {models['a']}" in plan.notes


def test_what_a_plan_tells(models: dict[str, Path], tmp_path: Path) -> None:
    result, _ = merged(config(models["a"], models["b"]), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    vocabulary = result.plan.vocabulary
    assert vocabulary is not None
    tokens = card.partition("## Tokens\n\n")[2].partition("## Configuration")[0]
    assert tokens.startswith(f"Vocabulary by union: {vocabulary.n_tokens} tokens, {vocabulary.n_rows} rows.")
    for model in vocabulary.models:
        assert f"- {model}\n" in tokens
    adds = vocabulary.models[1].adds
    assert (
        f"{models['a']}: has {vocabulary.models[0].has}, adds {vocabulary.models[0].has}; other rows: {adds} from"
        in tokens
    )


def test_different_sizes_need_a_tokenizer(models: dict[str, Path]) -> None:
    a, b = models["a"], save_model(models["a"].parent / "b2", tokenizer("b"), 1, rows=70)
    asked = {key: value for key, value in config(a, b).items() if key != "tokenizer"}
    rows = len(Tokenizer.from_file(str(a / "tokenizer.json")).get_vocab())
    hint = (
        "add `tokenizer: {source: union}` to merge the vocabularies; --unsafe-truncate-embeddings keeps the rows that "
        "all have, whatever tokens they are"
    )
    assert complaint(asked).splitlines() == [
        f"config: `{name}` has different shapes: [{rows}, 8] in {a}, [70, 8] in {b} (hint: {hint})"
        for name in (EMBEDDING, HEAD)
    ]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "karcher"])
def test_truncated_embeddings(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    a, b = (
        save_model(tmp_path / f"{n}2", tokenizer(n), seed, rows=rows)
        for seed, (n, rows) in enumerate({"a": 70, "b": 60}.items())
    )
    asked: dict[str, Any] = {"merge_method": method, "models": [{"model": str(b)}], "base_model": str(a)}
    asked["parameters"] = {} if method == "karcher" else {"weight": 0.5}
    result, weights = merged(asked, tmp_path / "out", truncate_embeddings=True)
    assert weights[EMBEDDING].shape == weights[HEAD].shape == (60, 8)
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 60
    assert result.plan.notes[-2:] == tuple(
        f"`{name}` is cut to its first 60 rows, of 70 in {a}; which tokens they are was not checked"
        for name in (EMBEDDING, HEAD)
    )
    if method == "linear":
        before = [load_file(folder / "model.safetensors")[HEAD][:60] for folder in (a, b)]
        torch.testing.assert_close(weights[HEAD], (before[0] + before[1]) / 2)


def test_a_tokenizer_goes_before_truncation(models: dict[str, Path]) -> None:
    asked = config(models["a"], models["b"])
    assert mergecore.plan(asked, truncate_embeddings=True).digest == mergecore.plan(asked).digest


def test_what_can_not_be_planned(models: dict[str, Path], tmp_path: Path) -> None:
    a, b = models["a"], models["b"]
    (b / "tokenizer.json").write_text("{")
    assert complaint(config(a, b)).startswith(f"{b / 'tokenizer.json'}: is not valid JSON")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (a / name).unlink()
    assert complaint(config(a)) == (
        f"{a}: has no tokenizer, and the output's is made from it (hint: it needs a tokenizer.json)"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    c = models["c"]
    assert complaint(config(c, tokenizer={"source": str(empty)})) == (
        f"config: tokenizer.source: {empty} has no tokenizer: there is no tokenizer.json in {empty}"
    )
    assert "there is no model `nowhere`" in complaint(config(c, tokenizer={"source": "nowhere"}))
    wrong = {"<q>": {"source": str(a)}}
    assert complaint(config(c, tokenizer={"tokens": wrong})) == (
        f"config: tokenizer.tokens.<q>: the row of '<q>' should come from {a}, which is not merged "
        f"(hint: the models are: {c})"
    )


def test_files_of_weights_have_no_vocabulary(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    assert complaint(config(tmp_path / "a.safetensors")) == (
        "config: tokenizer: the vocabularies can't be merged: none of the tensors of a state dict is known to have a "
        "row for each token"
    )


def test_an_adapter_on_an_embedding_that_gets_other_rows(models: dict[str, Path], tmp_path: Path) -> None:
    rows = len(Tokenizer.from_file(str(models["b"] / "tokenizer.json")).get_vocab())
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2, "peft_type": "LORA"}))
    factors = {"lm_head.lora_A.weight": torch.ones(2, 8), "lm_head.lora_B.weight": torch.ones(rows, 2)}
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in factors.items()}, adapter / "adapter_model.safetensors"
    )
    with_adapter = Path(f"{models['b']}+{adapter}")
    assert complaint(config(models["a"], with_adapter)) == (
        f"config: `lm_head.weight` of {with_adapter} is changed by a LoRA adapter, and gets other rows by "
        "`tokenizer` (hint: merge the adapter in a stage of its own before, with `merge_method: passthrough`)"
    )
    first = {"name": "b", "merge_method": "passthrough", "models": [{"model": str(with_adapter)}]}
    mergecore.merge([first, config(models["a"], Path("b"))], tmp_path / "out", workers=0)
    same = save_model(tmp_path / "same", tokenizer("b"), 5)
    assert mergecore.plan(config(with_adapter, same)).vocabulary is not None


def test_rows_of_different_lengths(models: dict[str, Path]) -> None:
    weights = load_file(models["b"] / "model.safetensors")
    weights[HEAD] = torch.ones(len(weights[HEAD]), 9)
    save_file(weights, models["b"] / "model.safetensors")
    assert f"`{HEAD}` has different shapes" in complaint(config(models["a"], models["b"]))
    sliced = config(models["a"])
    sliced.pop("models")
    sliced |= {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": str(models[name]), "layer_range": [0, 1]}]} for name in "aba"
    ]}  # fmt: skip
    rows = [len(load_file(models[name] / "model.safetensors")[HEAD]) for name in "ab"]
    with pytest.raises(PlanError, match="has rows of different lengths") as caught:
        mergecore.plan(sliced)
    expected = (
        f"`{HEAD}` has rows of different lengths: [{rows[1]}, 9] in {models['b']}, [{rows[0]}, 8] in {models['a']}"
    )
    assert str(caught.value) == f"config: {expected}"
