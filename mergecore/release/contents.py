"""What is published of a folder: its files, and a manifest that doesn't name folders of this machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import ReleaseError
from mergecore.output.manifest import MANIFEST, Manifest, manifest_text, read_manifest
from mergecore.output.model_card import CARD
from mergecore.stream.journal import JOURNAL
from mergecore.stream.writer import PARTIAL

_CACHES = ("__pycache__",)


def read_finished(folder: Path) -> Manifest:
    """The manifest of a run that came to its end. Raises ReleaseError, CheckpointError if the manifest is damaged."""
    if not folder.is_dir():
        raise ReleaseError.at(folder, "there is no such folder", "give the folder of a merged model or an adapter")
    unfinished = [path for path in folder.iterdir() if path.name == JOURNAL or path.suffix == PARTIAL]
    if unfinished:
        hint = "give the command that wrote it again to finish it"
        raise ReleaseError.at(folder, f"is unfinished: {unfinished[0].name} is left in it", hint)
    if not (folder / MANIFEST).is_file():
        raise ReleaseError.at(folder, f"has no {MANIFEST}", "only what mergecore wrote, and can verify, is pushed")
    return read_manifest(folder)


def contents(folder: Path, manifest: Manifest) -> dict[str, Path | bytes]:
    """What to publish, by the names in the repository: weights first, and the manifest as `shareable` gives it.

    Hidden files and folders, and caches, are left out. Raises ReleaseError for a link out of the folder.
    """
    weights = {name: folder / name for name in manifest.weights}
    others = dict(_visible(folder, folder, weights.keys()))
    return {**weights, **others, MANIFEST: shareable(manifest).encode()}


def not_written(names: Iterable[str], manifest: Manifest) -> list[str]:
    """The files among `names` that somebody else put into the folder."""
    return [name for name in names if name not in {*manifest.weights, *manifest.files, MANIFEST, CARD}]


def _visible(folder: Path, root: Path, weights: Collection[str]) -> Iterator[tuple[str, Path]]:
    """The files beside the weights, with their names in the repository."""
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.name.startswith(".") or path.name in _CACHES or name in weights:
            continue
        if path.is_symlink() and (path.is_dir() or root.resolve() not in path.resolve().parents):
            raise ReleaseError.at(path, "is a link out of the folder", "remove it, or copy what it leads to")
        if path.is_dir():
            yield from _visible(path, root, weights)
        elif path.is_file():
            yield name, path


def shareable(manifest: Manifest) -> str:
    """The manifest's text with each model's folder called as the config calls the model.

    So a merge can still be verified, and repeated where the config's names lead to the models. Of other files that were
    read, adapters for one, only the last folder is told.
    """
    content = manifest.content
    models = [{**model, "folder": _name(model)} for model in content["models"]]
    names = {Path(model["folder"]): _name(model) for model in content["models"]}

    def called(file: str) -> str:
        path = Path(file)
        for folder, name in names.items():
            if path == folder:
                return name
            if folder in path.parents:
                return f"{name}/{path.relative_to(folder).as_posix()}"
        return f"{path.parent.name}/{path.name}"

    return manifest_text(
        {
            **content,
            "models": models,
            "inputs": {called(file): facts for file, facts in content["inputs"].items()},
            "inputs_of_stages": {
                stage: {called(file): facts for file, facts in files.items()}
                for stage, files in content["inputs_of_stages"].items()
            },
            "options": {**content["options"], "plugins": [Path(file).name for file in content["options"]["plugins"]]},
        }
    )


def _name(model: dict[str, Any]) -> str:
    return ModelReference.parse(model["name"]).path


def local_paths(manifest: Manifest) -> list[str]:
    """The folders of this machine that the config names, and an adapter its base by, each once: they stand in the card,
    too.
    """
    named = [manifest.content["config"], manifest.content.get("base")]
    return list(dict.fromkeys(text for text in _texts(named) if _is_absolute(text)))


def _texts(content: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def _is_absolute(text: str) -> bool:
    return "\n" not in text and (text.startswith(("/", "~")) or PureWindowsPath(text).is_absolute())
