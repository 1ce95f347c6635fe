"""A model as far as it is known without reading a weight: its config.json and the headers of its weight files.

The files lie in a folder in the layout of Hugging Face, in one local file, or in a repository on the Hub.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.checkpoint.json_file import read_json
from mergecore.checkpoint.location import WEIGHT_SUFFIXES, Download, HubModel, Location, OnDownload
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.pickled_file import read_pickled
from mergecore.checkpoint.safetensors_file import TensorRef, read_header
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.checkpoint.weight_files import BESIDE_WEIGHTS, INDEX_SUFFIX, choose_weights
from mergecore.errors import CheckpointError

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a model without reading a weight."""

    folder: Path
    """Where its files are or, on the Hub, will be once they are downloaded. The file, where a model is only that."""
    config: dict[str, Any]
    """config.json; empty for a model that has none."""
    tensors: Mapping[str, InFiles]
    """By name."""
    updates: Mapping[str, LowRank] = field(default_factory=dict)
    """What a LoRA adapter adds to the tensors, by name."""
    commit: str | None = None
    """On the Hub; None for a local model."""
    download: Download | None = None
    """What must be downloaded before the weights can be read."""
    tokenizer: TokenizerFiles | None = None
    """Its tokenizer, where that is not just what lies in the folder."""


class ModelFiles(Protocol):
    """The files of a model, wherever they are."""

    @property
    def folder(self) -> Path:
        """Where they are or will be."""

    @property
    def where(self) -> str:
        """What the user calls it."""

    @property
    def names(self) -> Collection[str]:
        """Of all files, those in sub-folders left out."""

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file that is there."""

    def tensors(self, names: Sequence[str]) -> dict[str, TensorRef]:
        """All tensors of some weight files."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The files of a local folder."""

    folder: Path

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def names(self) -> Collection[str]:
        try:
            return {path.name for path in self.folder.iterdir() if path.is_file()}
        except OSError as error:
            raise CheckpointError.at(self.folder, f"can't be read: {error.strerror}") from error

    def json(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name)

    def tensors(self, names: Sequence[str]) -> dict[str, TensorRef]:
        return together(self.folder, (read_weights(self.folder / file) for file in names))


def open_checkpoint(location: Location, on_download: OnDownload = lambda download: None) -> Checkpoint:
    """Read config.json and the headers of all weight files. Raises CheckpointError if there is no whole model.

    Of a model on the Hub only these are transferred, without being kept. But pickled weights are downloaded: where in a
    file the tensors lie is told in too many places to ask for each. `on_download` is told before.
    """
    if isinstance(location, HubModel):
        from mergecore.checkpoint import hub  # only here, as huggingface_hub takes long to import

        return hub.open_model(location, on_download)
    if location.is_file():
        return Checkpoint(location, {}, read_weights(location))
    check_links(location)
    return checkpoint_of(LocalFiles(location))


def check_links(folder: Path) -> None:
    """Raises CheckpointError for a file that isn't weights and is a link to what is no part of any model.

    Such files are copied to the output, and a stranger's link could lead to a secret. Caches link to their `blobs`.
    """
    for path in sorted(folder.glob("*")):
        if path.suffix not in BESIDE_WEIGHTS or not path.is_symlink() or not path.is_file():
            continue
        home = path.resolve().parent
        is_cache = home.name == "blobs" and (home.parent / "snapshots").is_dir()
        is_model = any(any(home.glob(f"*{suffix}")) for suffix in WEIGHT_SUFFIXES)
        if home != folder.resolve() and not is_cache and not is_model:
            raise CheckpointError.at(
                path, f"is a link to {path.resolve()}, which is no file of a model", "put a copy in its place"
            )


def local_folder(adapter: Location, on_download: OnDownload) -> Path:
    """The folder of a LoRA adapter, which is downloaded if it is on the Hub. Raises CheckpointError."""
    if not isinstance(adapter, HubModel):
        return adapter
    from mergecore.checkpoint import hub

    return hub.fetch_adapter(adapter, on_download)


def checkpoint_of(files: ModelFiles) -> Checkpoint:
    """The model that some files make up. Raises CheckpointError."""
    names = files.names
    weights = choose_weights(names, files.where)
    config = files.json(CONFIG_FILE) if CONFIG_FILE in names else {}
    if not weights.endswith(INDEX_SUFFIX):
        return Checkpoint(files.folder, config, files.tensors([weights]))
    weight_map = _weight_map(files, weights)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in names]
    if missing:
        raise CheckpointError.at(
            files.where,
            f"lacks {', '.join(missing)}, which {weights} names",
            "finish copying or downloading the model",
        )
    tensors = files.tensors(shards)
    shard_of = {file: Path(file).name for file in {tensor.file for tensor in tensors.values()}}
    for name, shard in weight_map.items():
        if name not in tensors or shard_of[tensors[name].file] != shard:
            raise CheckpointError.at(
                f"{files.where}/{shard}", f"lacks the tensor `{name}`, which {weights} says it holds"
            )
    return Checkpoint(files.folder, config, tensors)


def together(where: object, shards: Iterable[Mapping[str, TensorRef]]) -> dict[str, TensorRef]:
    """The tensors of several weight files. Raises CheckpointError, at `where`, if two of them have the same name."""
    tensors: dict[str, TensorRef] = {}
    for found in shards:
        for name, tensor in found.items():
            if name in tensors:
                files = sorted(Path(one.file).name for one in (tensors[name], tensor))
                raise CheckpointError.at(
                    where, f"the tensor `{name}` is in {files[0]} and in {files[1]}", "copy or download the model again"
                )
            tensors[name] = tensor
    return tensors


def read_weights(file: Path) -> dict[str, TensorRef]:
    """The tensors of one weight file, by name. Raises CheckpointError."""
    return read_header(file) if file.suffix == ".safetensors" else read_pickled(file)


def _weight_map(files: ModelFiles, index: str) -> dict[str, str]:
    """Tensor name -> file name. A file name can't lead out of the folder."""
    path = f"{files.where}/{index}"
    names = files.json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError.at(path, "has no `weight_map` from tensor names to file names")
    outside = next((name for name in set(names.values()) if Path(name).name != name), None)
    if outside is not None:
        raise CheckpointError.at(path, f"names the file {outside!r}, which is not in the model folder")
    return names
