"""The bytes of a merge depend on config and seed, and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore import merge, methods, plan
from mergecore.stream import budget, execute

ROWS, COLUMNS = 700, 301  # several chunks and a rest


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, llama) -> dict[str, Path]:
    """A base and two fine-tunes with one tensor of several chunks, in bfloat16 with many equal deltas."""
    generator = torch.Generator().manual_seed(5)
    root = tmp_path_factory.mktemp("family")
    base: dict[str, Tensor] = llama(1, dtype=torch.bfloat16)
    base["model.embed_tokens.weight"] = (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).bfloat16()
    folders = {}
    for name in ("base", "a", "b"):
        folder = folders[name] = root / name
        folder.mkdir()
        tensors = base if name == "base" else {
            key: (t.float() + torch.randn(t.shape, generator=generator) * 0.0005).bfloat16() for key, t in base.items()
        }  # fmt: skip
        save_file(tensors, folder / "model.safetensors")
        config_json = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
        (folder / "config.json").write_text(json.dumps(config_json))
    return folders


def config(method: str, family: dict[str, Path]) -> dict[str, Any]:
    """The method's example on the family."""
    found = methods.get(method)
    values = {name: getattr(found.example, name) for name in found.example.model_fields_set}
    names = ["a"] if found.models == (1, 1) else ["a", "b"]
    scopes = {p.name: p.scope for p in found.parameters}
    entries = [
        {"model": str(family[name]), "parameters": {
            key: value[i] for key, value in values.items()
            if scopes[key] is not methods.Scope.SHARED and isinstance(value, tuple) and value[i] is not None
        }}
        for i, name in enumerate(names)
    ]  # fmt: skip
    source: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "bfloat16"}
    source["parameters"] = {k: v for k, v in values.items() if scopes[k] is methods.Scope.SHARED}
    if found.space == "deltas":
        source["base_model"] = str(family["base"])
    return source


def merged(method: str, family: dict[str, Path], out: Path, **options: Any) -> dict[str, Tensor]:
    merge(config(method, family), out, **{"seed": 3, "workers": 0} | options)
    return {name: t for file in sorted(out.glob("*.safetensors")) for name, t in load_file(file).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.int16), b[n].view(torch.int16)) for n in a)


@pytest.mark.parametrize("method", methods.names())
def test_memory_shards_and_job_sizes_change_no_bit(method: str, family, tmp_path: Path, monkeypatch) -> None:
    whole = merged(method, family, tmp_path / "whole")
    assert equal(whole, merged(method, family, tmp_path / "again"))
    assert equal(whole, merged(method, family, tmp_path / "shards", shard_size="100KB"))
    least = budget.least_memory(plan(config(method, family)), workers=1)
    assert equal(whole, merged(method, family, tmp_path / "little", memory=least))
    monkeypatch.setattr(execute, "SPAN", budget.CHUNK)
    assert equal(whole, merged(method, family, tmp_path / "spans"))


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
def test_workers_change_no_bit(method: str, family, tmp_path: Path) -> None:
    here = merged(method, family, tmp_path / "here")
    assert equal(here, merged(method, family, tmp_path / "one", workers=1))
    assert equal(here, merged(method, family, tmp_path / "two", workers=2, memory="64MiB"))


def test_seed_decides_what_is_dropped(family, tmp_path: Path) -> None:
    three, four = (merged("dare_ties", family, tmp_path / f"{seed}", seed=seed) for seed in (3, 4))
    assert not equal(three, four)


def test_seed_changes_nothing_where_nothing_is_random(family, tmp_path: Path) -> None:
    assert equal(*(merged("ties", family, tmp_path / f"{seed}", seed=seed) for seed in (3, 4)))


def test_inputs_are_not_touched(family, tmp_path: Path) -> None:
    before = {name: (folder / "model.safetensors").read_bytes() for name, folder in family.items()}
    merged("dare_ties", family, tmp_path / "out")
    assert before == {name: (folder / "model.safetensors").read_bytes() for name, folder in family.items()}
