"""The configs that come with mergecore: each can be loaded, says what it is, and runs as it says."""

from pathlib import Path

import pytest

from mergecore import methods
from mergecore.checkpoint.model_reference import locate
from mergecore.config import load

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.y*ml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config(path, monkeypatch):
    config = load(path, strict=True)
    monkeypatch.chdir("/")
    for model in {entry.model for entry in config.models} | {s.model for one in config.slices for s in one.sources}:
        assert (locate(model, config.folder) / "config.json").is_file()
    if config.base_model is not None:
        assert (locate(config.base_model, config.folder) / "config.json").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_what_it_does_how_to_run_it_and_what_it_needs(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    does, run, needs = (head.index(label) for label in ("# What it does:  ", "# How to run it: ", "# What it needs: "))
    assert does == 0 < run < needs
    assert f"mergecore merge {path.relative_to(REPOSITORY)} merged/" in head


def test_each_method_has_a_config():
    assert {load(path).merge_method for path in CONFIGS} == set(methods.names())
