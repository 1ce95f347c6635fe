"""A model folder in the layout of Hugging Face: config.json and safetensors files, one or several with an index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.errors import CheckpointError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a model without reading a weight."""

    folder: Path
    config: dict[str, Any]
    """config.json"""
    tensors: dict[str, TensorRef]
    """By name."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and the headers of all weight files. Raises CheckpointError if the folder is no whole model."""
    config = read_json(folder / CONFIG_FILE)
    tensors: dict[str, TensorRef] = {}
    for file in _weight_files(folder):
        tensors |= read_header(file)
    _check_index(folder, tensors)
    return Checkpoint(folder, config, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError.at(path.parent, f"has no {path.name}, so it is not a whole model folder") from error
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError.at(path, f"is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError.at(path, "should be a JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).exists():
        raise _no_weights(folder)
    names = sorted(set(_weight_map(folder).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError.at(
            folder, f"lacks {', '.join(missing)}, which {INDEX_FILE} names", "finish copying or downloading the model"
        )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        return CheckpointError.at(
            folder,
            f"holds pickled weights ({pickled[0]}), and only safetensors files are read",
            "save the model with `safe_serialization=True`",
        )
    return CheckpointError.at(folder, f"holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name. A file name can't lead out of the folder."""
    path = folder / INDEX_FILE
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError.at(path, "has no `weight_map` from tensor names to file names")
    outside = next((name for name in names.values() if Path(name).name != name), None)
    if outside is not None:
        raise CheckpointError.at(path, f"names the file {outside!r}, which is not in the model folder")
    return names


def _check_index(folder: Path, tensors: dict[str, TensorRef]) -> None:
    """Every tensor that the index promises must be in the file it names."""
    if (folder / SINGLE_FILE).exists():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors or Path(tensors[name].file).name != file:
            raise CheckpointError.at(folder / file, f"lacks the tensor `{name}`, which {INDEX_FILE} says it holds")
