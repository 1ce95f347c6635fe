"""`mergecore moe`: what it prints, and that it writes what a merge of the config does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_family import load_weights, same_bytes
from typer.testing import CliRunner

from mergecore import ConfigError, methods
from mergecore_cli import console
from mergecore_cli.main import app


def run(*arguments: object):
    for cached in (console.out, console.err):
        cached.cache_clear()
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def config(make_model, tmp_path: Path) -> Path:
    """Of a mixture whose gates are drawn."""
    names = [str(make_model(name, seed=seed)) for seed, name in enumerate("abc")]
    path = tmp_path / "mixture.yml"
    experts = [{"source_model": name} for name in names[1:]]
    path.write_text(yaml.safe_dump({"base_model": names[0], "gate_mode": "random", "experts": experts}))
    return path


def test_both_commands_write_the_same(config: Path, tmp_path: Path) -> None:
    """With flags of mergekit-moe, which have nothing to do here."""
    flags = ("--load-in-4bit", "--i-understand-this-is-not-useful-without-training", "--trust-remote-code")
    moe = run("moe", config, tmp_path / "one", "--random-seed", 3, "--workers", 0, *flags)
    assert (moe.exit_code, moe.stdout) == (0, "")
    assert "Planned 29 tensors by moe" in moe.stderr
    assert "seed 3" in moe.stderr
    assert "warning: --trust-remote-code has no effect" in moe.stderr
    assert run("merge", config, tmp_path / "two", "--seed", 3, "--workers", 0).exit_code == 0
    assert same_bytes(load_weights(tmp_path / "one"), load_weights(tmp_path / "two"))


def test_the_method_is_explained_but_not_offered_for_models() -> None:
    assert "Its config has `experts` in the place of models" in run("methods", "moe").stdout
    assert "moe" not in methods.names()


def test_a_config_without_experts(tmp_path: Path) -> None:
    path = tmp_path / "linear.yml"
    path.write_text("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    with pytest.raises(ConfigError, match="linear.yml: has no `experts`, so it is no mixture .hint: `mergecore merge`"):
        run("moe", path, tmp_path / "out")


def test_a_dry_run_runs_no_model(config: Path, tmp_path: Path) -> None:
    """Prompts are read, and the base model run, when the mixture is made."""
    content = yaml.safe_load(config.read_text()) | {"gate_mode": "hidden"}
    for number, expert in enumerate(content["experts"]):
        expert["positive_prompts"] = [f"prompt {number}"]
    config.write_text(yaml.safe_dump(content))
    done = run("moe", config, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert "MixtralForCausalLM, 2 layers" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_is_told_of_the_gates(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergecore.moe import gates

    def found(*_: object, layers: int, hidden_size: int, on_progress, **__: object):
        on_progress(1, layers)
        on_progress(2, layers)
        return gates.random_gates("random", layers=layers, experts=2, hidden_size=hidden_size, seed=0)

    monkeypatch.setattr(gates, "gate_vectors", found)
    told = run("moe", config, tmp_path / "out", "--workers", 0).stderr
    assert told.count("Found the gates: 2 layers of the base model saw the prompts\n") == 1
    assert "Layer 1 of 2" not in told
    told = run("moe", config, tmp_path / "again", "--workers", 0, "-v").stderr
    assert "Layer 1 of 2 of the base model has seen the prompts\n" in told
