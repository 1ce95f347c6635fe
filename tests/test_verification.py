"""`mergecore verify`: what was written is proven, and every kind of damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mergecore
from mergecore import CheckpointError, merge, verify
from mergecore.methods import plugins, registry
from mergecore.output.manifest import MANIFEST, checksum
from mergecore_cli.main import app


def linear(*models: object, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": entries} | more


@pytest.fixture
def models(make_model) -> list[Path]:
    return [make_model(name, seed=seed) for seed, name in enumerate("xy")]


@pytest.fixture
def out(models, tmp_path: Path) -> Path:
    (models[0] / "tokenizer.json").write_text("{}")
    merge(linear(*models), tmp_path / "out", workers=0, shard_size="10KB")
    return tmp_path / "out"


def flip_a_byte(out: Path) -> str:
    file = out / "model-00002-of-00006.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return f"{file}: the bytes of `"


def truncate(out: Path) -> str:
    file = out / "model-00001-of-00006.safetensors"
    n_bytes = file.stat().st_size
    os.truncate(file, n_bytes - 1)
    return f"{file}: has {n_bytes - 1} bytes, expected {n_bytes}"


def remove_a_file(out: Path) -> str:
    (out / "model-00003-of-00006.safetensors").unlink()
    return f"{out / 'model-00003-of-00006.safetensors'}: is missing"


def rename_a_tensor(out: Path) -> str:
    file = out / "model-00001-of-00006.safetensors"
    file.write_bytes(file.read_bytes().replace(b"embed_tokens", b"embed_tokenz"))
    return f"{file}: lacks the tensor `model.embed_tokens.weight`"


def relabel_a_tensor(out: Path) -> str:
    file = out / "model-00001-of-00006.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"', 1))
    return f"{file}: `model.embed_tokens.weight` is I32 [50, 24], expected F32 [50, 24]"


def damage_the_header(out: Path) -> str:
    file = out / "model-00001-of-00006.safetensors"
    file.write_bytes(file.read_bytes().replace(b"{", b"[", 1))
    return f"{file}: not a whole safetensors file: its header is not JSON"


def leave_a_partial_file(out: Path) -> str:
    (out / "model.safetensors.partial").write_bytes(b"")
    return f"{out / 'model.safetensors.partial'}: is an unfinished file"


def leave_a_journal(out: Path) -> str:
    (out / ".mergecore-journal").write_bytes(b"")
    return f"{out / '.mergecore-journal'}: is left of a run that was interrupted"


def add_weights(out: Path) -> str:
    shutil.copy(out / "model-00001-of-00006.safetensors", out / "model.safetensors")
    return f"{out / 'model.safetensors'}: is not one of the weight files that were written"


def edit_the_config(out: Path) -> str:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": 1}))
    return f"{out / 'config.json'}: is not what was written"


def remove_the_index(out: Path) -> str:
    (out / "model.safetensors.index.json").unlink()
    return f"{out / 'model.safetensors.index.json'}: is missing"


DAMAGES = [
    flip_a_byte, truncate, remove_a_file, rename_a_tensor, relabel_a_tensor, damage_the_header, leave_a_partial_file,
    leave_a_journal, add_weights, edit_the_config, remove_the_index,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_kind_of_damage_is_named(damage: Callable[[Path], str], out: Path) -> None:
    assert verify(out).passed
    message = damage(out)
    found = verify(out)
    assert not found.passed
    assert any(str(problem).startswith(message) for problem in found.problems), found.problems


def test_a_damaged_tensor_is_the_only_one_named(out: Path) -> None:
    file = out / "model-00002-of-00006.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    data = file.read_bytes()
    save_file(tensors, out.parent / "other.safetensors")
    from mergecore.checkpoint.safetensors_file import read_header

    start = read_header(file)[name].offset_bytes
    file.write_bytes(data[:start] + tensors[name].numpy().tobytes() + data[start + tensors[name].nbytes :])
    (problem,) = verify(out).problems
    assert f"the bytes of `{name}` are damaged: it has the hash " in problem.what


def test_progress_and_counts(out: Path) -> None:
    totals, moved = [], []
    found = verify(out, on_begin=totals.append, on_progress=moved.append)
    manifest = json.loads((out / MANIFEST).read_text())
    assert (found.files, found.tensors) == (6, len(manifest["tensors"]))
    assert totals == [found.n_bytes] == [sum(file.stat().st_size for file in out.glob("*.safetensors"))]
    assert sum(moved) == sum(tensor.nbytes for file in out.glob("*.safetensors") for tensor in load_file(file).values())


def test_truncated_embeddings_are_merged_again_likewise(make_model, llama, tmp_path: Path) -> None:
    longer = llama() | {name: torch.ones(53, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    models = make_model("short"), make_model("long", longer, vocab_size=53)
    merge(linear(*models), tmp_path / "out", workers=0, truncate_embeddings=True)
    found = verify(tmp_path / "out", recompute=1.0, workers=0)
    assert found.passed
    assert found.recomputed


PLUGIN = """
from pathlib import Path
from mergecore.methods import Params, method
from mergecore_kernels.operations import WeightedSum

Path(__file__).with_name("ran").touch()

@method("half", paper="none", space="weights", models=(1, 1), base="optional", params=Params, example=Params())
def half(p, target):
    return WeightedSum((0.5,))
"""


def test_a_plug_in_that_the_manifest_names_is_run_only_if_asked_for(models, tmp_path: Path, monkeypatch) -> None:
    registry.load_all()  # or those that are loaded meanwhile would be forgotten
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(plugins, "_loaded", {})
    plugin, ran = tmp_path / "plugin.py", tmp_path / "ran"
    plugin.write_text(PLUGIN)
    config = {"merge_method": "half", "models": [{"model": str(models[0])}]}
    merge(config, tmp_path / "out", workers=0, plugins=[plugin])
    ran.unlink()
    monkeypatch.setattr(plugins, "_loaded", {})
    assert verify(tmp_path / "out").passed
    (problem,) = verify(tmp_path / "out", recompute=1.0, workers=0).problems
    assert str(problem) == f"mergecore.json: the merge ran the plug-in {plugin}"
    assert problem.hint == "name it with --plugin, if you trust it"
    assert not ran.exists()
    found = verify(tmp_path / "out", recompute=1.0, workers=0, plugins=[plugin])
    assert found.passed
    assert found.recomputed
    assert ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has the format 2, expected 1 .hint: update mergecore"),
        ({"weights": {"../x.safetensors": 1}}, "is damaged: `weights.*`: .*can't be the name of a file in the folder"),
        ({"files": {"/etc/passwd": ""}}, "is damaged: `files.*`: .*can't be the name of a file in the folder"),
        ({"inputs": {"a\0b": {}}}, "is damaged: `inputs.*`: .*can't be the path of a file"),
        ({"models": [{"name": "", "folder": "a"}]}, "is damaged: `models.0.name`: .*an empty text"),
        ({"config": []}, "is damaged: `config`: List should have at least 1 item"),
        ({"options": {}}, "is damaged: `options.plugins`: Field required"),
    ],
)
def test_a_manifest_of_a_stranger(out: Path, changes: dict[str, Any], message: str) -> None:
    """Its checksum is right: anybody can compute it."""
    content = json.loads((out / MANIFEST).read_text()) | changes
    del content["checksum"]
    (out / MANIFEST).write_text(json.dumps(content | {"checksum": checksum(content)}))
    with pytest.raises(CheckpointError, match=message):
        verify(out)


def test_a_tensor_that_the_manifest_leaves_out(out: Path) -> None:
    content = json.loads((out / MANIFEST).read_text())
    del content["checksum"]
    name = content["tensors"].pop()[0]
    (out / MANIFEST).write_text(json.dumps(content | {"checksum": checksum(content)}))
    problems = [str(problem) for problem in verify(out, recompute=1.0, workers=0).problems]
    assert f"{out / MANIFEST}: does not name `{name}`, which the inputs give" in problems


def test_no_manifest(out: Path) -> None:
    (out / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="out: has no mergecore.json, so there is nothing to compare it with"):
        verify(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"seed"', '"sead"'), "is damaged: its checksum is wrong"),
        (lambda text: text[:-9], "is not valid JSON"),
        (lambda text: "[]", "should be a JSON object"),
    ],
)
def test_a_damaged_manifest(out: Path, change: Callable[[str], str], message: str) -> None:
    (out / MANIFEST).write_text(change((out / MANIFEST).read_text()))
    with pytest.raises(CheckpointError, match=message):
        verify(out)


def test_what_the_manifest_says(models, out: Path) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["versions"]["mergecore"] == mergecore.__version__
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert manifest["backend"] == {"name": "torch", "device": "cpu", "why": "triton needs a GPU"}
    assert manifest["seed"] is None
    (config,) = manifest["config"]
    assert [entry["model"] for entry in config["models"]] == [str(model) for model in models]
    assert [model["folder"] for model in manifest["models"]] == [str(model) for model in models]
    assert set(manifest["inputs"]) == {str(model / "model.safetensors") for model in models}
    assert {facts["bytes"] for facts in manifest["inputs"].values()} == {
        (models[0] / "model.safetensors").stat().st_size
    }
    assert set(manifest["files"]) == {
        "config.json", "tokenizer.json", "model.safetensors.index.json", "mergecore_config.yml",
    }  # fmt: skip
    work = manifest["work"]
    n_bytes = sum(tensor.nbytes for file in out.glob("*.safetensors") for tensor in load_file(file).values())
    assert (work["read_bytes"], work["written_bytes"], work["kept_bytes"]) == (2 * n_bytes, n_bytes, 0)
    assert work["steps"]["merge"]["GB/s"] > 0
    assert manifest["nonfinite"] == []


def test_nonfinite_values_are_in_the_manifest(make_model, llama, tmp_path: Path) -> None:
    broken = llama()
    broken["model.norm.weight"][3] = float("nan")
    model = make_model("broken", broken)
    merge(linear(model), tmp_path / "out", workers=0, allow_nonfinite=True)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["nonfinite"] == [{"tensor": "model.norm.weight", "model": str(model), "count": 1}]
    assert verify(tmp_path / "out", recompute=1.0, workers=0).passed


def test_hashes_depend_on_neither_shards_nor_workers(models, out: Path, tmp_path: Path) -> None:
    merge(linear(*models), tmp_path / "one", workers=1)
    one, six = (json.loads((folder / MANIFEST).read_text())["tensors"] for folder in (tmp_path / "one", out))
    assert {row[0]: row[-1] for row in one} == {row[0]: row[-1] for row in six}


@pytest.mark.parametrize("method", ["linear", "dare_ties", "ties"])
def test_merged_again_it_is_the_same(models, make_model, tmp_path: Path, method: str) -> None:
    config = linear(*models) | {"merge_method": method}
    if method != "linear":
        config |= {"base_model": str(make_model("base", seed=9)), "parameters": {"density": 0.5}}
    if method == "ties":
        config["parameters"]["trim"] = "global"
    result = merge(config, tmp_path / "out", workers=0)
    found = verify(tmp_path / "out", recompute=1.0, workers=0)
    assert found.passed, found.problems
    assert sorted(found.recomputed) == sorted(tensor.name for tensor in result.plan.tensors)
    few = verify(tmp_path / "out", recompute=0.05, workers=0).recomputed
    assert 1 <= len(few) < len(found.recomputed)


def test_merged_again_it_is_not_the_same(models, out: Path) -> None:
    """An input with another value in the same place, of which size, header and time are the same."""
    file = models[1] / "model.safetensors"
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (problem,) = verify(out, recompute=1.0, workers=0).problems
    assert "comes out otherwise when it is merged again: " in problem.what
    os.utime(file, ns=(1, 1))
    assert verify(out, recompute=1.0, workers=0).notes == (
        f"{file} was written again since the merge, with the same header",
    )


def test_inputs_that_have_changed_or_are_gone(models, make_model, out: Path) -> None:
    shutil.rmtree(models[1])
    make_model("y", n_layers=3)
    found = verify(out, recompute=1.0, workers=0)
    assert found.recomputed == ()
    (problem,) = (p for p in found.problems if "has changed since the merge" in p.what)
    assert problem.where == str(models[1] / "model.safetensors")
    shutil.rmtree(models[1])
    assert any("is gone: the model" in problem.what for problem in verify(out, recompute=0.1, workers=0).problems)


def test_a_chain_is_merged_again_if_its_stages_are_kept(models, make_model, tmp_path: Path) -> None:
    config = [linear(*models, name="one"), linear("one", make_model("z", seed=4))]
    merge(config, tmp_path / "out", workers=0)
    assert verify(tmp_path / "out").passed
    (*_, problem) = verify(tmp_path / "out", recompute=1.0, workers=0).problems
    assert "is gone: the model one was there" in problem.what
    merge(config, tmp_path / "kept", workers=0, keep_stages=tmp_path / "stages")
    assert verify(tmp_path / "kept", recompute=1.0, workers=0).passed


def test_the_command(out: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(out), "--recompute", "5%", "-j", "0"])
    assert done.exit_code == 0, done.output
    assert "result        as it was written" in done.stdout
    flip_a_byte(out)
    done = runner.invoke(app, ["verify", str(out), "--json"])
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert (facts["passed"], len(facts["problems"])) == (False, 1)
    done = runner.invoke(app, ["verify", str(out)])
    assert done.exit_code == 1
    assert "1 difference" in done.stdout
    assert "model-00002-of-00006.safetensors: the bytes of `" in done.stderr


@pytest.mark.parametrize("text", ["lots", "-1%", "101"])
def test_a_share_that_is_none(out: Path, text: str) -> None:
    done = CliRunner().invoke(app, ["verify", str(out), "--recompute", text])
    assert str(done.exception) == f"--recompute: `{text}` is not a share of the model (hint: write it like 5%)"
