"""Files of strangers: nothing of them is run, no name leads out of a folder, no secret gets out. What is odd but right
is merged all the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from broken_inputs.breaking import CONFIG, LLAMA, make_whole, write_json
from safetensors.torch import load_file, save_file

from mergecore import MergeError, merge, plan
from mergecore.checkpoint.location import HubModel
from mergecore_cli.main import main

TOKEN = "hf_" + "abcdefghijklmnop" * 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a merge that is whole."""
    monkeypatch.chdir(tmp_path)
    make_whole(tmp_path)
    return tmp_path


def copy(model: object) -> dict[str, object]:
    return {"merge_method": "passthrough", "models": [{"model": str(model)}]}


def test_code_in_a_model_is_never_run(here: Path) -> None:
    (here / "a" / "modeling_evil.py").write_text("import os\nos.mkdir('hacked')\n")
    write_json(here / "a" / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling_evil.T", None]}})
    write_json(here / "a" / "config.json", LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.M"}})
    merge("merge.yml", "out", workers=0)
    assert not (here / "hacked").exists()


def test_a_cache_of_links_to_blobs_is_a_model(here: Path) -> None:
    snapshot, blobs = here / "cache" / "snapshots" / "1", here / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (here / "a" / "tokenizer.json").write_text("{}")
    for i, path in enumerate(sorted((here / "a").iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    merge(copy(snapshot), "out", workers=0)
    assert (here / "out" / "tokenizer.json").read_text() == "{}"
    assert not (here / "out" / "tokenizer.json").is_symlink()


def test_links_to_weights_elsewhere_and_to_files_of_another_model(here: Path) -> None:
    (here / "c").mkdir()
    for name in ("config.json", "model.safetensors"):
        (here / "c" / name).symlink_to(here / "a" / name)
    merge(copy("c"), "out", workers=0)
    with pytest.raises(MergeError, match="holds files that the merge reads"):
        merge(copy("c"), "a", workers=0, overwrite=True)


def test_tensors_without_elements_and_without_axes(here: Path) -> None:
    for name in "ab":
        tensors = {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 4), "w": torch.ones(2)}
        save_file(tensors, here / name / "model.safetensors")
        (here / name / "config.json").unlink()
    merge("merge.yml", "out", workers=0)
    merged = load_file("out/model.safetensors")
    assert merged["scalar"].shape == ()
    assert merged["scalar"] == 3
    assert merged["empty"].shape == (0, 4)


def test_a_tensor_that_one_model_has_more_is_told(here: Path) -> None:
    tensors = load_file("a/model.safetensors")
    save_file(tensors | {"extra": torch.ones(2)}, "a/model.safetensors")
    assert any("are not part of a LlamaForCausalLM" in note for note in plan("merge.yml").notes)


@pytest.mark.parametrize(
    ("method", "parameter", "value", "note"),
    [
        ("ties", "density", 1.5, "`density` is 1.5, which counts like 1: it is a fraction"),
        ("breadcrumbs", "gamma", 2, "`gamma` is 2, which counts like 1: it is a fraction"),
        ("sce", "select_topk", -1, "`select_topk` is -1, which counts like 0: it is a fraction"),
        ("slerp", "t", 50, "`t` is 50, which goes beyond the two models: from 0 to 1 is between them"),
    ],
)
def test_values_that_mergekit_takes_are_told(here: Path, method: str, parameter: str, value: float, note: str) -> None:
    entries = [{"model": "a"}, {"model": "b", "parameters": {"weight": 1}}]
    parameters = {parameter: value, "weight": 1}
    config = {"merge_method": method, "models": entries, "base_model": "a", "parameters": parameters}
    assert f"config: {note}" in plan(config).notes
    assert not any("fraction" in note or "beyond" in note for note in plan(config | {"parameters": {"t": 0.5}}).notes)


def test_the_table_of_a_plan_takes_names_for_text(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (here / "a").rename(here / "[red]x[b]")
    (here / "merge.yml").write_text(CONFIG.replace("model: a", "model: '[red]x[b]'"))
    write_json(here / "[red]x[b]" / "config.json", LLAMA)
    monkeypatch.setattr(sys, "argv", ["mergecore", "plan", "merge.yml"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "[red]x[b] ([red]x[b])" in capsys.readouterr().out


def test_a_token_is_neither_told_nor_written(here: Path, hub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    hub.add("org/a", here / "a")
    merge(copy("org/a"), "out", workers=0)
    for path in Path("out").iterdir():
        assert TOKEN.encode() not in path.read_bytes()
    for status in (401, 403, 500):
        hub.status = status
        (here / "merge.yml").write_text("merge_method: passthrough\nmodels: [{model: org/other}]\n")
        monkeypatch.setattr(sys, "argv", ["mergecore", "merge", "merge.yml", "out2"])
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr()
        assert "error: org/other" in told.err
        assert TOKEN not in told.err + told.out


def test_a_token_in_a_config_is_not_written(here: Path) -> None:
    Path("merge.yml").write_text(f"# {TOKEN}\ntoken: {TOKEN}\n{CONFIG}")
    merge("merge.yml", "out", workers=0)
    assert not [path for path in Path("out").iterdir() if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["model.safetensors.partial", "config.json.partial", "mergecore.json.partial"])
def test_temporary_files_are_not_written_through_links(here: Path, name: str) -> None:
    Path("out").mkdir()
    Path("mine.txt").write_text("mine")
    Path("out", name).symlink_to("../mine.txt")
    merge("merge.yml", "out", workers=0)
    assert Path("mine.txt").read_text() == "mine"
    assert not [path for path in Path("out").iterdir() if path.is_symlink()]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "mergecore.json"])
def test_links_in_a_folder_that_is_overwritten_are_replaced(here: Path, name: str) -> None:
    Path("out").mkdir()
    Path("mine.txt").write_text("mine")
    Path("out", name).symlink_to("../mine.txt")
    merge("merge.yml", "out", workers=0, overwrite=True)
    assert Path("mine.txt").read_text() == "mine"
    assert not Path("out", name).is_symlink()


def test_names_on_a_malicious_hub_lead_nowhere(here: Path, hub) -> None:
    files = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": Path("a/model.safetensors").read_bytes()}
    hub.add(
        "org/a",
        files | {"..": b"", "../evil.json": b"{}", "..\\evil.json": b"{}", "": b"", "evil\n": b"", "sub/x.json": b"{}"},
    )
    merge(copy("org/a"), "out", workers=0)
    assert not list(here.rglob("*evil*"))


@pytest.mark.parametrize("commit", ["../../../x", "main", ""])
def test_a_hub_whose_commit_is_none(here: Path, hub, commit: str) -> None:
    hub.add("org/a", here / "a")
    repository = hub.repositories["org/a"]
    repository.commits[commit] = next(iter(repository.commits.values()))
    repository.references["main"] = commit
    with pytest.raises(MergeError, match=r"^org/a: the Hub says that its commit is '.*', which is none$"):
        plan(copy("org/a"))


@pytest.mark.parametrize("revision", ["../x", "/etc", "a/../../b", "..\\x"])
def test_a_revision_that_leads_elsewhere(hub, revision: str) -> None:
    from mergecore.checkpoint.hub import open_model

    with pytest.raises(MergeError, match="can't be the name of a branch, tag or commit"):
        open_model(HubModel("org/a", revision), lambda download: None)
    assert hub.requests == []
