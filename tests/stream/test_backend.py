"""The choice of the backend: with its reason, and never another one than was asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergecore import ConfigError
from mergecore.stream import backend as backends
from mergecore.stream.backend import Backend, choose_backend


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)


def test_auto_takes_triton_on_a_gpu() -> None:
    assert choose_backend("auto", "cuda:1") == Backend("triton", "cuda:1", "the device is a GPU")


def test_auto_takes_torch_on_a_cpu() -> None:
    assert choose_backend("auto", "cpu") == Backend("torch", "cpu", "triton needs a GPU")


def test_auto_without_triton(monkeypatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    assert choose_backend("auto", "cuda") == Backend("torch", "cuda", "triton is not installed")


def test_auto_takes_torch_on_xpu() -> None:
    assert choose_backend("auto", "xpu:0") == Backend("torch", "xpu:0", "the kernels are for CUDA and ROCm")


def test_torch_can_be_asked_for_on_a_gpu() -> None:
    assert choose_backend("torch", "cuda") == Backend("torch", "cuda", "it was asked for")


def test_triton_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--backend: triton needs a GPU, and the device is cpu .hint: add --device"):
        choose_backend("triton", "cpu")


def test_triton_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    with pytest.raises(ConfigError, match="--backend: triton is not installed .hint: pip install triton"):
        choose_backend("triton", "cuda")


def test_interpreted_triton_runs_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", "cpu").name == "triton"


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="--backend: `cuda` is not a backend .hint: the backends are auto, torch"):
        choose_backend("cuda", "cuda")


def test_everything_but_the_kernels_works_without_triton(tmp_path) -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import mergecore, mergecore_kernels.torch_ops, mergecore_cli.main\n"
        "import mergecore.stream.merger\n"
        f"from pathlib import Path; root = Path({str(__file__)!r}).parents[2]\n"
        f"mergecore.merge(root / 'configs' / 'quickstart.yml', {str(tmp_path / 'out')!r}, workers=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
