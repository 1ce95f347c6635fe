"""The configs that come with mergecore: each says what it is, has nothing without effect, and runs as it says."""

from pathlib import Path

import pytest
from safetensors import safe_open

import mergecore
from mergecore import methods
from mergecore.config.mixture import METHOD
from mergecore.config.stages import load_stages

REPOSITORY = Path(__file__).parent.parent
TASKS = REPOSITORY / "configs" / "quickstart" / "tasks"  # lm-eval's
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.y*ml") if path.parent != TASKS)
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@each_config
def test_a_config_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir("/")  # models are found from the config's folder
    mergecore.merge(path, tmp_path / "out", workers=0, seed=0, strict=True)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as merged:
        assert "model.embed_tokens.weight" in merged.keys()  # noqa: SIM118
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@each_config
def test_a_config_opens_with_what_it_does_how_to_run_it_and_what_it_needs(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    does, run, needs = (head.index(label) for label in ("# What it does:  ", "# How to run it: ", "# What it needs: "))
    assert does == 0 < run < needs
    assert f"mergecore merge {path.relative_to(REPOSITORY)} merged/" in head


def test_each_method_has_a_config():
    used = {stage.config.merge_method for path in CONFIGS for stage in load_stages(path)}
    assert used == {*methods.names(), METHOD}
