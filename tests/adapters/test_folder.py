"""Folders of adapters: what their manifest tells, that damage is found, and that no run leaves half of one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_cli import ForkedCommands
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import mergecore
from mergecore.errors import ConfigError, MergeError
from mergecore.stream.journal import Journal
from mergecore_cli.main import app

WEIGHTS = "adapter_model.safetensors"
MakeModel = Callable[..., Path]


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[Path, Path]:
    return make_model("tuned", seed=1), make_model("base")


@pytest.fixture
def lora(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return extract(pair, tmp_path / "lora")


def extract(pair: tuple[Path, Path], out: Path, **options: Any) -> Path:
    options = {"rank": 2, "skip_undecomposable": True, "exclude": ["embed|head"], "device": "cpu"} | options
    mergecore.extract_lora(*pair, out, **options)
    return out


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "mergecore.json").read_text())
    return content


class TestManifest:
    def test_of_an_extracted_adapter(self, pair: tuple[Path, Path], lora: Path) -> None:
        found = manifest(lora)
        assert found["kind"] == "adapter"
        assert found["versions"]["mergecore"] == mergecore.__version__
        assert found["config"] == [
            {
                "model": str(pair[0]),
                "base": str(pair[1]),
                "rank": 2,
                "include": [],
                "exclude": ["embed|head"],
                "modules_to_save": [],
                "embed_lora": False,
                "skip_undecomposable": True,
                "dtype": "float32",
            }
        ]
        assert (found["base"], found["device"], found["seed"]) == (str(pair[1]), "cpu", None)
        assert [model["folder"] for model in found["models"]] == list(map(str, pair))
        assert list(found["inputs"]) == [str(folder / "model.safetensors") for folder in pair]
        assert found["work"]["seconds"] >= 0
        assert found["files"].keys() == {"adapter_config.json"}
        tensors = load_file(lora / WEIGHTS)
        assert {name: shape for name, _, _, shape, _ in found["tensors"]} == {
            n: list(t.shape) for n, t in tensors.items()
        }

    @pytest.mark.parametrize(
        ("rule", "told"), [({"energy": 0.5}, {"energy": 0.5}), ({"budget": "4K"}, {"budget": 4000}), ({}, {"rank": 16})]
    )
    def test_tells_how_ranks_were_chosen(
        self, pair: tuple[Path, Path], tmp_path: Path, rule: dict[str, Any], told: dict[str, Any]
    ) -> None:
        found = manifest(extract(pair, tmp_path / "lora", rank=None, **rule))["config"][0]
        assert {key: found[key] for key in ("rank", "energy", "budget") if key in found} == told

    def test_of_merged_adapters(self, pair: tuple[Path, Path], lora: Path, tmp_path: Path) -> None:
        other = extract(pair, tmp_path / "other", include=["mlp"])
        models = [{"model": str(path), "parameters": {"weight": 1, "density": 0.5}} for path in (lora, other)]
        config = {"merge_method": "dare_linear", "models": models}
        mergecore.merge_lora(config, tmp_path / "out", seed=7)
        found = manifest(tmp_path / "out")
        assert found["config"] == [config]
        assert (found["kind"], found["seed"], found["base"]) == ("adapter", 7, str(pair[1]))
        files = [str(folder / name) for folder in (lora, other) for name in (WEIGHTS, "adapter_config.json")]
        assert list(found["inputs"]) == files
        assert mergecore.verify(tmp_path / "out").passed

    def test_an_input_that_changes_meanwhile(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        weights = pair[1] / "model.safetensors"
        with pytest.raises(MergeError) as caught:
            extract(pair, tmp_path / "lora", on_progress=lambda _: os.utime(weights, ns=(0, time.time_ns())))
        assert str(caught.value) == (
            f"{weights}: has changed while it was read, so the adapter is worth nothing "
            "(hint: give the same command again once it is whole)"
        )
        assert not (tmp_path / "lora").exists()


class TestVerify:
    def test_counts(self, lora: Path) -> None:
        found = mergecore.verify(lora)
        assert found.passed
        assert (found.files, found.tensors) == (1, 28)
        assert found.n_bytes == (lora / WEIGHTS).stat().st_size

    def test_a_tensor_of_several_blocks_and_tensors_held_whole(
        self, make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        tables = {name: torch.ones(12_000, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
        pair = (
            make_model("tuned", llama(seed=1) | tables, vocab_size=12_000),
            make_model("base", llama() | {name: 2 * table for name, table in tables.items()}, vocab_size=12_000),
        )
        out = extract(pair, tmp_path / "lora", skip_undecomposable=False, exclude=[])
        assert mergecore.verify(out).passed

    def test_damage(self, lora: Path) -> None:
        data = bytearray((lora / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (lora / WEIGHTS).write_bytes(data)
        config = lora / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))
        first, second = mergecore.verify(lora).problems
        assert str(first) == f"{config}: is not what was written"
        assert str(second).startswith(f"{lora / WEIGHTS}: the bytes of `base_model.model.model.layers.1.")

    def test_the_command(self, lora: Path) -> None:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["verify", str(lora)])
        assert done.exit_code == 0
        assert "28 tensors in 1 file" in done.output
        (lora / WEIGHTS).unlink()
        assert CliRunner().invoke(app, ["verify", str(lora)]).exit_code == 1

    def test_nothing_is_computed_again(self, lora: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            mergecore.verify(lora, recompute=0.1, workers=0)
        assert str(caught.value) == (
            f"--recompute: {lora} is a LoRA adapter, and only merges of models can be merged again "
            "(hint: without it, files and hashes are compared)"
        )


class TestRunsAtOnce:
    def test_a_second_run_is_refused(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        messages = []

        def again(_: int) -> None:
            with pytest.raises(MergeError) as caught:
                extract(pair, tmp_path / "lora")
            messages.append(str(caught.value))

        extract(pair, tmp_path / "lora", on_progress=again)
        hint = "(hint: wait for it, or write to another one)"
        assert set(messages) == {f"{tmp_path / 'lora'}: another run of mergecore is writing to this folder {hint}"}
        assert mergecore.verify(tmp_path / "lora").passed

    def test_an_interrupted_merge_is_not_lost(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "model.safetensors.partial").write_bytes(b"work")
        journal = Journal(out)
        journal.restart({"mergecore": "0"})
        journal.close()
        with pytest.raises(MergeError, match="is not empty"):
            extract(pair, out)
        assert (out / "model.safetensors.partial").read_bytes() == b"work"
        extract(pair, out, overwrite=True)
        assert mergecore.verify(out).passed


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    with ForkedCommands(tmp_path_factory.mktemp("said") / "errors") as commands:
        yield commands


@pytest.mark.skipif(sys.platform == "win32", reason="there is neither fork nor SIGKILL")
class TestInterruptions:
    """Runs that take a second and more end after the first tensors are written."""

    @pytest.fixture
    def large(self, make_model: MakeModel) -> tuple[Path, Path]:
        """Models of which a matrix takes long enough to be interrupted in."""
        generator = torch.Generator().manual_seed(0)
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(16)]
        models = [{name: torch.randn(500, 500, generator=generator) for name in names} for _ in range(2)]
        return make_model("large", models[0]), make_model("small", models[1])

    def interrupt(self, commands: ForkedCommands, number: int, pair: tuple[Path, Path], out: Path) -> int:
        """Extract, send a signal after the first tensor, and give the exit code."""
        pid = commands.start("extract-lora", pair[0], "--base", pair[1], out, "--overwrite", "--energy", "1")
        partial = out / f"{WEIGHTS}.partial"
        while commands.runs(pid) and not (partial.exists() and partial.stat().st_size):
            time.sleep(0.001)
        commands.interrupt(pid, number)
        return commands.wait()[0]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_nothing_is_left(
        self, commands: ForkedCommands, large: tuple[Path, Path], tmp_path: Path, number: int, code: int
    ) -> None:
        assert self.interrupt(commands, number, large, tmp_path / "lora") == code
        assert not (tmp_path / "lora").exists()

    def test_what_was_killed_does_not_look_whole(
        self, commands: ForkedCommands, large: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "lora"
        assert self.interrupt(commands, signal.SIGKILL, large, out) == -signal.SIGKILL
        assert {path.name for path in out.iterdir()} == {f"{WEIGHTS}.partial", ".mergecore-journal"}
        with pytest.raises(MergeError, match=r"has no mergecore\.json"):
            mergecore.verify(out)
        mergecore.extract_lora(*large, out, rank=1, device="cpu")
        assert mergecore.verify(out).passed

    def test_an_adapter_that_was_there_is_still_whole(
        self, commands: ForkedCommands, large: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "lora"
        mergecore.extract_lora(*large, out, rank=1, device="cpu")
        before = (out / WEIGHTS).read_bytes()
        assert self.interrupt(commands, signal.SIGTERM, large, out) == 143
        assert mergecore.verify(out).passed
        assert self.interrupt(commands, signal.SIGKILL, large, out) == -signal.SIGKILL
        assert [problem.what for problem in mergecore.verify(out).problems] == [
            "is left of a run that was interrupted",
            "is an unfinished file",
        ]
        assert (out / WEIGHTS).read_bytes() == before
