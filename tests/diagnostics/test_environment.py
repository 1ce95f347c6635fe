"""What is told of a machine, and what isn't."""

from __future__ import annotations

import getpass
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mergecore.diagnostics import environment
from mergecore.diagnostics.environment import Gpu, look_around


def test_this_machine() -> None:
    found = look_around()
    assert found.mergecore == "0.1.0"
    assert found.torch == torch.__version__
    assert found.python == platform.python_version()
    assert found.cores >= 1
    assert found.processor


def test_nothing_private_is_told() -> None:
    told = str(asdict(look_around()))
    assert platform.node() not in told
    assert str(Path.home()) not in told
    assert str(Path.cwd()) not in told
    assert getpass.getuser() not in told.split()


@pytest.mark.parametrize(
    ("properties", "capability"), [({"major": 9, "minor": 0}, "9.0"), ({"gcnArchName": "gfx942"}, "gfx942")]
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, properties: dict[str, Any], capability: str) -> None:
    card = SimpleNamespace(
        name="A card", total_memory=80, multi_processor_count=132, **({"major": 9, "minor": 4} | properties)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert look_around().gpus == (Gpu("A card", capability, 80, 132),) * 2


def test_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    assert look_around().triton is None


def driver(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Callable[..., Any] | None) -> str | None:
    monkeypatch.setattr(environment, "_MODULES", folder)
    monkeypatch.setattr(environment.shutil, "which", lambda tool: answer and tool)
    monkeypatch.setattr(subprocess, "run", answer)
    return look_around().driver


def test_the_driver_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "version").write_text("570.1\n")
    assert driver(monkeypatch, tmp_path, None) == "nvidia 570.1"


def test_else_the_drivers_tool_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    answer = SimpleNamespace(stdout="570.2\n570.2\n")
    assert driver(monkeypatch, tmp_path, lambda *_, **__: answer) == "nvidia 570.2"
    assert driver(monkeypatch, tmp_path, fail) is None
    assert driver(monkeypatch, tmp_path, None) is None
