"""Whatever is wrong, the user reads what and where, nothing is lost and nothing of a stranger's is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from broken_inputs.breaking import make_whole
from broken_inputs.table import CASES, Case
from huggingface_hub import constants

from mergecore_cli.main import main

RESUMABLE = {".mergecore-journal", "model.safetensors.partial"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a merge that is whole. The Hub can't be reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    make_whole(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["mergecore", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def content(path: Path) -> bytes | int | None:
    """Of a file, or the size of a huge one, and None for a folder."""
    if not path.is_file():
        return None
    n_bytes = path.stat().st_size
    return path.read_bytes() if n_bytes < 1_000_000 else n_bytes


def everything(folder: Path) -> dict[str, bytes | int | None]:
    """All that is in a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): content(path) for path in found}


def pattern(told: str) -> str:
    return re.escape(told).replace(re.escape("{any}"), ".*")


def test_the_merge_is_whole_before_it_is_broken(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run(monkeypatch, "merge", "merge.yml", "out", "-q", "-j", "0") == 0
    assert capsys.readouterr().err == ""
    assert (here / "out" / "config.json").exists()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_input(case: Case, here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    if case.name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with monkeypatch.context() as patch:
        case.breaks(here, patch)
        before = everything(here)
        code = run(patch, "merge", "merge.yml", case.out, "-q", "-j", "0", *case.arguments)
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(pattern(case.told), told.err.replace(str(here), "{here}")), told.err
    assert code == case.code
    after = everything(here)
    if case.begun:
        assert {path.name for path in (here / case.out).iterdir()} == RESUMABLE
        after = {name: content for name, content in after.items() if not name.startswith(case.out)}
    assert after == before


def test_each_case_is_named_once() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
