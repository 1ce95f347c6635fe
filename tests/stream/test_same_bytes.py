"""The bytes of a merge depend on config and seed, and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_family import example_config, load_weights, same_bytes, write_family
from torch import Tensor

from mergecore import merge, methods, plan
from mergecore.stream import budget, execute


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, llama) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"), llama(1, dtype=torch.bfloat16))


def merged(method: str, family: dict[str, Path], out: Path, **options: Any) -> dict[str, Tensor]:
    merge(example_config(method, family), out, **{"seed": 3, "workers": 0} | options)
    return load_weights(out)


@pytest.mark.parametrize("method", methods.names())
def test_memory_shards_and_job_sizes_change_no_bit(method: str, family, tmp_path: Path, monkeypatch) -> None:
    whole = merged(method, family, tmp_path / "whole")
    assert same_bytes(whole, merged(method, family, tmp_path / "again"))
    assert same_bytes(whole, merged(method, family, tmp_path / "shards", shard_size="100KB"))
    least = budget.least_memory(plan(example_config(method, family)), workers=1)
    assert same_bytes(whole, merged(method, family, tmp_path / "little", memory=least))
    monkeypatch.setattr(execute, "SPAN", budget.CHUNK)
    assert same_bytes(whole, merged(method, family, tmp_path / "spans"))


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
def test_workers_change_no_bit(method: str, family, tmp_path: Path) -> None:
    here = merged(method, family, tmp_path / "here")
    assert same_bytes(here, merged(method, family, tmp_path / "one", workers=1))
    assert same_bytes(here, merged(method, family, tmp_path / "two", workers=2, memory="64MiB"))
    assert same_bytes(here, merged(method, family, tmp_path / "three", workers=3, memory="1GiB", shard_size="100KB"))


def test_seed_decides_what_is_dropped(family, tmp_path: Path) -> None:
    three, four = (merged("dare_ties", family, tmp_path / f"{seed}", seed=seed) for seed in (3, 4))
    assert not same_bytes(three, four)


def test_seed_changes_nothing_where_nothing_is_random(family, tmp_path: Path) -> None:
    assert same_bytes(*(merged("ties", family, tmp_path / f"{seed}", seed=seed) for seed in (3, 4)))


def test_inputs_are_not_touched(family, tmp_path: Path) -> None:
    before = {name: (folder / "model.safetensors").read_bytes() for name, folder in family.items()}
    merged("dare_ties", family, tmp_path / "out")
    assert before == {name: (folder / "model.safetensors").read_bytes() for name, folder in family.items()}
