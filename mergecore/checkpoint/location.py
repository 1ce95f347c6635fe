"""Where the files of a model or an adapter are: in a local folder, in one local file, or in a repository on the Hub."""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import PlanError

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Of files that can be named in place of a folder."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What `org/name` on the Hub looks like, and what no absolute path and no `./folder` looks like."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the Hub, or a LoRA adapter's. Nothing is known of it but what the config says."""

    repo: str
    """`org/name`"""
    revision: str | None = None
    """A branch, a tag or a commit; None for the main branch."""
    hint: str = ""
    """Which local folder may have been meant, if there is no such repository."""

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Download:
    """Files of a repository that a merge needs and that are not in the cache yet."""

    model: HubModel
    commit: str
    files: tuple[str, ...]
    """Weights last, so that whoever finds them finds the others too."""
    n_bytes: int
    reason: str = "to be merged"
    """For the user."""


OnDownload = Callable[[Download], None]
"""Is told of a download before it begins."""

Location = Path | HubModel
"""A folder, a file of weights, or a repository."""


def locate(reference: ModelReference, config_folder: Path | None = None, *, where: str = "") -> Location:
    """Where a model is: what its path leads to from the working directory or else from the config's folder, or else a
    repository on the Hub.

    What is called exactly what the config says wins, so a path may contain `+` and `@`. A revision says nothing about a
    local folder and is not looked at. Raises PlanError, at `where`, if the path can be neither.
    """
    roots = _roots(config_folder)
    as_written = _find(roots, str(reference))
    return as_written or _locate(reference.path, reference.revision, str(reference), roots, where)


def locate_adapter(reference: ModelReference, config_folder: Path | None = None, *, where: str = "") -> Location | None:
    """Where a model's LoRA adapter is, by the same rules; None if the reference names none."""
    roots = _roots(config_folder)
    adapter = reference.lora
    if adapter is None or _find(roots, str(reference)) is not None:
        return None
    return _locate(adapter.path, adapter.revision, str(adapter), roots, where)


def _roots(config_folder: Path | None) -> list[Path]:
    return [Path()] if config_folder is None else [Path(), config_folder]


def _locate(path: str, revision: str | None, written: str, roots: list[Path], where: str) -> Location:
    found = _find(roots, path)
    if found is not None:
        return found
    close = _close_folder(path, roots)
    close_hint = "" if close is None else f"did you mean `{close}`?"
    if HUB_NAME.fullmatch(path) and not path.endswith(WEIGHT_SUFFIXES):
        return HubModel(path, revision, close_hint)
    if "://" in path:
        raise PlanError.at(where, f"`{written}` is a URL", "write a local folder, or org/name for a model on the Hub")
    tried = " and ".join(dict.fromkeys(f"`{root.absolute() / path}`" for root in roots))
    hint = (
        _hint(path, written, roots)
        or close_hint
        or "relative paths start at the working directory or the config's folder"
    )
    raise PlanError.at(where, f"there is no model `{written}`: tried {tried}", hint)


def _hint(path: str, written: str, roots: list[Path]) -> str:
    """What is wrong with a path that leads to a file, or with how it is written."""
    if any(_mode_is(stat.S_ISREG, root / path) for root in roots):
        return f"a file of weights ends in one of {', '.join(WEIGHT_SUFFIXES)}"
    if max(written.count("+"), written.count("@")) > 1:
        return "only `model@revision+lora@revision` is understood, unless a folder has that very name"
    return ""


def _find(roots: list[Path], path: str) -> Path | None:
    return next((root / path for root in roots if _is_folder(root / path) or _is_weight_file(root / path)), None)


def _is_folder(path: Path) -> bool:
    return _mode_is(stat.S_ISDIR, path)


def _is_weight_file(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES and _mode_is(stat.S_ISREG, path)


def _mode_is(kind: Callable[[int], bool], path: Path) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # not there, a name too long, a null byte
        return False


def _close_folder(path: str, roots: list[Path]) -> Path | None:
    """The folder or file of weights beside `path` whose name is nearly the same, written like `path`."""
    for root in roots:
        wanted = root / path
        if not _is_folder(wanted.parent):
            continue
        try:
            names = [entry.name for entry in wanted.parent.iterdir() if _is_folder(entry) or _is_weight_file(entry)]
        except OSError:
            continue
        close = difflib.get_close_matches(wanted.name, names, n=1, cutoff=0.75)
        if close:
            return Path(path).with_name(close[0])
    return None
