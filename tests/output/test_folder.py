"""The output folder: whole or not there, and never on top of something else by accident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergecore import PlanError, merge, plan
from mergecore.output import folder as output_folder
from mergecore.stream import writer


def source(*models: Path, method: str = "linear", **rest: Any) -> dict[str, Any]:
    entries = [{"model": str(m), "parameters": {"weight": 1}} for m in models]
    return {"merge_method": method, "models": entries, **rest}


def test_a_whole_folder(make_model, tmp_path: Path) -> None:
    a, b = make_model("a"), make_model("b")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (a / name).write_text(f'{{"of": "{name}"}}')
    result = merge(source(a, b), tmp_path / "out", workers=0, shard_size="10KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.n_bytes for t in result.plan.tensors)
    assert set(index["weight_map"]) == {t.name for t in result.plan.tensors}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(index["weight_map"].values()) | {
        "config.json", "model.safetensors.index.json", "README.md", "mergecore_config.yml", "mergecore.json",
        "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    }  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"of": "tokenizer.json"}'


def test_the_resolved_config_gives_the_same_plan(make_model, tmp_path: Path) -> None:
    config = source(make_model("a"), make_model("b"), dtype="bfloat16", parameters={"normalize": False})
    result = merge(config, tmp_path / "out", workers=0)
    assert plan(tmp_path / "out" / "mergecore_config.yml").digest == result.plan.digest


def test_card_and_tokenizer_can_be_left_out(make_model, tmp_path: Path) -> None:
    a = make_model("a")
    (a / "tokenizer.json").write_text("{}")
    merge(source(a), tmp_path / "out", workers=0, copy_tokenizer=False, write_card=False)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "mergecore.json",
        "mergecore_config.yml",
    }


def test_the_card_says_what_was_merged(make_model, tmp_path: Path) -> None:
    base, a = make_model("base"), make_model("a")
    merge(source(a, method="dare_ties", base_model=str(base)), tmp_path / "out", workers=0, seed=17)
    card = (tmp_path / "out" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers", "tags": ["merge", "mergecore", "dare_ties"],
    }  # fmt: skip
    assert "arxiv.org/abs/2311.03099" in text
    assert "Random seed: 17" in text
    assert "merge_method: dare_ties" in text


def test_a_folder_with_something_in_it(make_model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match=f"{out}: is not empty .hint: --overwrite replaces the model in it"):
        merge(source(make_model("a")), out, workers=0)
    merge(source(make_model("b")), out, workers=0, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_overwrite_leaves_nothing_of_the_old_model(make_model, tmp_path: Path) -> None:
    out, a = tmp_path / "out", make_model("a")
    (a / "tokenizer.json").write_text("{}")
    merge(source(a), out, workers=0, shard_size="10KB")
    merge(source(make_model("b")), out, workers=0, overwrite=True)
    assert {p.name for p in out.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "mergecore_config.yml", "mergecore.json",
    }  # fmt: skip


def test_an_input_is_never_overwritten(make_model) -> None:
    a = make_model("a")
    before = (a / "model.safetensors").read_bytes()
    with pytest.raises(PlanError, match="is the folder of the input model"):
        merge(source(a), a, workers=0, overwrite=True)
    assert (a / "model.safetensors").read_bytes() == before


def test_out_is_a_file(make_model, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(PlanError, match="is a file, not a folder"):
        merge(source(make_model("a")), tmp_path / "out", workers=0)


def test_disk_too_small(make_model, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(output_folder, "free_bytes", lambda folder: 1000)
    with pytest.raises(PlanError, match=r"the disk has 1.0 KB free, but the output takes [0-9.]+ KB"):
        merge(source(make_model("a")), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_disk_full_while_writing(make_model, tmp_path: Path, monkeypatch) -> None:
    import errno

    from mergecore import RunError

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_at", full)
    with pytest.raises(RunError, match="the disk is full .hint: free some space"):
        merge(source(make_model("a")), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_old_model_whole(make_model, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    merge(source(make_model("a")), out, workers=0)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(writer, "write_at", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        merge(source(make_model("b", seed=1)), out, workers=0, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_what_a_killed_run_left_is_no_obstacle(make_model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00009.safetensors.partial").write_bytes(b"half")
    merge(source(make_model("a")), out, workers=0)
    assert not list(out.glob("*.partial"))
