"""How a config names a model, and where its folder is."""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.errors import PlanError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What `org/name` on the Hub looks like, and what no absolute path and no `./folder` looks like."""


@dataclass(frozen=True, slots=True)
class LoraReference:
    """The LoRA adapter in `model+lora`."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return _joined(self.path, self.revision)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as the config names it. Identity is textual: `a`, `./a` and `a@main` are three models."""

    path: str
    """A local folder, or `org/name` on the Hub."""
    revision: str | None = None
    """What follows the `@`."""
    lora: LoraReference | None = None
    """What follows the `+`."""
    override_architecture: str | None = None
    """Takes the place of `architectures` in the model's config.json."""

    @classmethod
    def parse(cls, value: object) -> ModelReference:
        """From `"model@revision+lora@revision"`, or from a mapping with `model`, `lora` and `override_architecture`.

        Text that breaks the grammar (a second `+` or `@`) is taken for a path as a whole: only `locate` can tell
        whether there is a folder of that name. Raises ValueError for what is neither text nor such a mapping.
        """
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, str):
            return cls._from_text(value)
        if isinstance(value, dict):
            return cls._from_mapping(value)
        raise ValueError(f"expected the path of a model, found {_shown(value)}")

    @classmethod
    def _from_text(cls, text: str) -> ModelReference:
        if not text.strip():
            raise ValueError("expected the path of a model, found an empty text")
        model, *loras = text.split("+")
        parts = [_split_revision(part) for part in (model, *loras)]
        if len(loras) > 1 or any(part is None or not part[0] for part in parts):
            return cls(text)
        (path, revision), *adapters = [part for part in parts if part is not None]
        return cls(path, revision, LoraReference(*adapters[0]) if adapters else None)

    @classmethod
    def _from_mapping(cls, mapping: dict[Any, Any]) -> ModelReference:
        if "model" not in mapping:
            raise ValueError("a model that is written as a mapping needs `model`, its path")
        lora = mapping.get("lora")
        override = mapping.get("override_architecture")
        if override is not None and not isinstance(override, str):
            raise ValueError(f"expected the name of a class as `override_architecture`, found {_shown(override)}")
        return cls(
            *_path_and_revision(mapping["model"], "model"),
            lora=None if lora is None else LoraReference(*_path_and_revision(lora, "lora")),
            override_architecture=override,
        )

    def as_yaml(self) -> str | dict[str, Any]:
        """What `parse` turns into this reference: text if text can say it, else a mapping."""
        if ModelReference._from_text(str(self)) == self:
            return str(self)
        whole: dict[str, Any] = {"model": {"path": self.path, "revision": self.revision}}
        if self.lora is not None:
            whole["lora"] = {"path": self.lora.path, "revision": self.lora.revision}
        if self.override_architecture is not None:
            whole["override_architecture"] = self.override_architecture
        return whole

    def __str__(self) -> str:
        model = _joined(self.path, self.revision)
        return model if self.lora is None else f"{model}+{self.lora}"


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.60}"


def _joined(path: str, revision: str | None) -> str:
    return path if revision is None else f"{path}@{revision}"


def _split_revision(text: str) -> tuple[str, str | None] | None:
    """`path@revision` -> both; None if there is more than one `@`."""
    path, *revisions = text.split("@")
    if len(revisions) > 1:
        return None
    return path, revisions[0] if revisions else None


def _path_and_revision(value: object, key: str) -> tuple[str, str | None]:
    if isinstance(value, str) and value.strip():
        return _split_revision(value) or (value, None)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        revision = value.get("revision")
        if revision is None or isinstance(revision, str):
            return value["path"], revision
    raise ValueError(f"expected a path, or `path` and `revision`, as `{key}`, found {_shown(value)}")


def locate(reference: ModelReference, config_folder: Path | None = None, *, where: str = "") -> Path:
    """The local folder of a model: as named from the working directory, or else from the config's folder.

    A folder that is called exactly what the config says wins, so a path may contain `+` and `@`. A revision says
    nothing about a local folder and is not looked at. Raises PlanError, at `where`, if there is no such folder, and
    for a LoRA adapter.
    """
    roots = [Path()] if config_folder is None else [Path(), config_folder]
    as_written = _find(roots, str(reference))
    if as_written is not None:
        return as_written
    if reference.lora is not None:
        model = _joined(reference.path, reference.revision)
        hint = f"merge the adapter `{reference.lora}` into `{model}` first, e.g. with peft's merge_and_unload"
        raise PlanError.at(where, f"LoRA adapters are not supported yet: `{reference}`", hint)
    found = _find(roots, reference.path)
    if found is None:
        tried = " and ".join(dict.fromkeys(f"`{root.absolute() / reference.path}`" for root in roots))
        raise PlanError.at(where, f"there is no model folder `{reference}`: tried {tried}", _hint(reference, roots))
    return found


def _find(roots: list[Path], path: str) -> Path | None:
    return next((root / path for root in roots if _is_folder(root / path)), None)


def _is_folder(path: Path) -> bool:
    return _mode_is(stat.S_ISDIR, path)


def _mode_is(kind: Callable[[int], bool], path: Path) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # not there, a name too long, a null byte
        return False


def _hint(reference: ModelReference, roots: list[Path]) -> str:
    """What may have been meant by a folder that isn't there."""
    if any(_mode_is(stat.S_ISREG, root / reference.path) for root in roots):
        return "that is a file; a model is named by its folder"
    if max(str(reference).count("+"), str(reference).count("@")) > 1:
        return "only `model@revision+lora@revision` is understood, unless a folder has that very name"
    close = _close_folder(reference.path, roots)
    if close is not None:
        return f"did you mean `{close}`?"
    if HUB_NAME.fullmatch(reference.path):
        revision = f" --revision {reference.revision}" if reference.revision else ""
        get = f"hf download {reference.path}{revision} --local-dir {reference.path}"
        return f"downloading from the Hub is not supported yet; get it with `{get}`"
    return "paths are relative to the working directory or to the config's folder"


def _close_folder(path: str, roots: list[Path]) -> Path | None:
    """The folder beside `path` whose name is nearly the same, written like `path`."""
    for root in roots:
        wanted = root / path
        if not _is_folder(wanted.parent):
            continue
        try:
            names = [entry.name for entry in wanted.parent.iterdir() if _is_folder(entry)]
        except OSError:
            continue
        close = difflib.get_close_matches(wanted.name, names, n=1, cutoff=0.75)
        if close:
            return Path(path).with_name(close[0])
    return None
