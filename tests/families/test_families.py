"""Twenty families of models, each put through a part of all merges: the tensors are those that mergekit makes.

`make_expected.py` tells how `expected.safetensors` was made. There is nothing in it that doesn't agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families.cases import BY_TENSOR, EVERYWHERE, cases
from families.models import FAMILIES, HERE, SAMPLED, TOLERANCE, sample, write_family
from safetensors.numpy import load_file

import mergecore

EXPECTED = load_file(HERE / "expected.safetensors")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of all families."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        write_family(family, root / family)
    return root


def merged(config: dict[str, Any], models: Path, out: Path) -> dict[str, np.ndarray]:
    """The tensors of the merge, and that they are those of its inputs and no others."""
    entries = [{**entry, "model": str(models / entry["model"])} for entry in config["models"]]
    base = {"base_model": str(models / config["base_model"])} if "base_model" in config else {}
    mergecore.merge({**config, "models": entries, **base}, out, workers=0, write_card=False)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(("family", "case"), cases(list(FAMILIES)))
def test_agrees_with_mergekit(family: str, case: str, folders: Path, tmp_path: Path) -> None:
    out = merged((EVERYWHERE | BY_TENSOR)[case], folders / family, tmp_path / "out")
    shapes = FAMILIES[family]["shapes"]
    assert {name: list(tensor.shape) for name, tensor in out.items()} == shapes
    expected = EXPECTED[f"{family}, {case}"].reshape(-1, 1 + SAMPLED)
    for name, (scale, *elements) in zip(sorted(shapes), expected, strict=True):
        found = sample(family, name, out[name])
        np.testing.assert_allclose(found[1:], elements, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_every_method_is_merged() -> None:
    assert {config["merge_method"] for config in EVERYWHERE.values()} == set(mergecore.methods.names())


def test_no_expected_merge_is_left_out() -> None:
    assert EXPECTED.keys() == {f"{family}, {case}" for family, case in cases(list(FAMILIES))}
