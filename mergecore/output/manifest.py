"""mergecore.json: what was written into a folder, from what, with what, and the hash of every tensor.

`mergecore verify` compares the folder with it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError
from xxhash import xxh3_128

from mergecore.checkpoint.json_file import check_size, parse_json
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import CheckpointError
from mergecore.plan.plan import Plan
from mergecore.stream.execute import Report, Work
from mergecore.stream.identity import DISTRIBUTION, file_identity, input_files

MANIFEST = "mergecore.json"
FORMAT = 1
ADAPTER = "adapter"
"""The `kind` of a manifest that is not a model's."""
_LONGEST_PATH, _LONGEST_NAME = 4096, 255
"""Bytes."""


def _path(text: str) -> str:
    if "\0" in text or len(text.encode()) > _LONGEST_PATH:
        raise ValueError(f"{text!r:.40} can't be the path of a file")
    return text


def _file_name(text: str) -> str:
    if text in ("", "..") or Path(text).name != text or len(text.encode()) > _LONGEST_NAME:
        raise ValueError(f"{text!r:.40} can't be the name of a file in the folder")
    return text


def _reference(text: str) -> str:
    ModelReference.parse(text)  # raises ValueError
    return text


_Path = Annotated[str, AfterValidator(_path)]
_FileName = Annotated[_Path, AfterValidator(_file_name)]


class _Model(BaseModel):
    name: Annotated[str, AfterValidator(_reference)]
    folder: _Path


class _Options(BaseModel):
    plugins: list[str]


class _MergeOptions(_Options):
    allow_crimes: bool
    tensors: str
    truncate_embeddings: bool = False
    """Left out by the first versions."""


class _Content(BaseModel):
    """What is read of a manifest. It may be a stranger's."""

    config: list[dict[str, Any]] = Field(min_length=1)
    seed: int | None
    options: _Options
    models: list[_Model]
    inputs: dict[_Path, dict[str, Any]]
    inputs_of_stages: dict[str, dict[_Path, dict[str, Any]]]
    weights: dict[_FileName, NonNegativeInt]
    files: dict[_FileName, str]
    tensors: list[tuple[str, _FileName, str, list[int], str]]


class _MergeContent(_Content):
    """What is read beside it of a merge of models, to merge again."""

    options: _MergeOptions
    survey: Any


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as it was written."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    """Its digest (`mergecore.stream.digests`)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says."""

    content: dict[str, Any]
    """All of it."""
    tensors: tuple[TensorEntry, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds a LoRA adapter, and not a model."""
        return self.content.get("kind") == ADAPTER

    @property
    def weights(self) -> dict[str, int]:
        """The weight files' names and sizes in bytes."""
        found: dict[str, int] = self.content["weights"]
        return found

    @property
    def files(self) -> dict[str, str]:
        """The hashes of the other files that were written."""
        found: dict[str, str] = self.content["files"]
        return found

    @property
    def inputs(self) -> dict[str, Any]:
        """Of each file that was read: what tells whether it is still the same."""
        found: dict[str, Any] = self.content["inputs"]
        return found


def manifest(
    folder: Path,
    plan: Plan,
    report: Report,
    identity: Mapping[str, Any],
    *,
    files: Iterable[str],
    options: Mapping[str, Any],
) -> str:
    """The manifest's text. `identity` is what decided the bytes; `files` are there, beside the weights."""
    stages = (*plan.before, plan)
    content = {
        "format": FORMAT,
        "versions": versions(),
        "backend": asdict(report.backend),
        "seed": plan.seed,
        "config": [stage.config for stage in stages],
        "options": {**options, "plugins": list(identity["plugins"])},
        "models": [
            {"name": model.name, "folder": str(model.folder.absolute()), "commit": model.commit}
            for model in plan.models
        ],
        "inputs": {str(Path(file).absolute()): facts for file, facts in identity["inputs"].items()},
        "inputs_of_stages": {
            str(stage.name): {str(Path(file).absolute()): file_identity(file) for file in input_files(stage)}
            for stage in plan.before
        },
        "survey": report.survey,
        "work": {
            "read_bytes": report.read_bytes,
            "written_bytes": report.written_bytes,
            "kept_bytes": report.kept_bytes,
            "seconds": round(report.seconds, 3),
            "predicted_seconds": report.predicted_seconds,
            "steps": {name: _work(work) for name, work in report.steps.items()},
        },
        "nonfinite": [
            {"tensor": tensor, "model": model, "count": count} for (tensor, model), count in report.nonfinite.items()
        ],
        "files": {name: file_hash(folder / name) for name in files},
        "weights": {shard.name: shard.n_bytes for shard in plan.shards},
        "tensors": [
            [t.name, plan.shards[t.shard].name, t.dtype.value, list(t.shape), report.digests[t.name]]
            for t in plan.tensors
        ],
    }
    return manifest_text(content)


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError if there is none, or if it isn't what was written."""
    path = folder / MANIFEST
    try:
        check_size(path, path.stat().st_size)
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError.at(
            folder,
            f"has no {MANIFEST}, so there is nothing to compare it with",
            "expected a folder that mergecore wrote",
        ) from None
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error
    content = parse_json(path, text)
    found = content.pop("checksum", None)
    if found is None or found != checksum(content):
        raise CheckpointError.at(path, "is damaged: its checksum is wrong")
    if content.get("format") != FORMAT:
        raise CheckpointError.at(path, f"has the format {content.get('format')}, expected {FORMAT}", "update mergecore")
    schema = _Content if content.get("kind") == ADAPTER else _MergeContent
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError.at(path, f"is damaged: `{place}`: {first['msg']}") from error
    tensors = tuple(TensorEntry(n, file, dtype, tuple(shape), h) for n, file, dtype, shape, h in content["tensors"])
    return Manifest(content, tensors)


def manifest_text(content: Mapping[str, Any]) -> str:
    """The file: JSON with a line for each tensor, and the checksum of all the rest."""
    rest = {key: value for key, value in content.items() if key != "tensors"} | {"checksum": checksum(content)}
    head = json.dumps(rest, indent=2)[:-2]
    return f'{head},\n  "tensors": {_lines(content["tensors"])}\n}}\n'


def checksum(content: Mapping[str, Any]) -> str:
    """Of what a manifest says beside it. It tells damage, not an author."""
    return xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Of a small file. Raises OSError."""
    return xxh3_128(path.read_bytes()).hexdigest()


def versions() -> dict[str, str | None]:
    """Of what may decide the bytes; None for a package that isn't installed."""
    packages = {"mergecore": DISTRIBUTION, "torch": "torch", "triton": "triton"}
    return {name: _version(package) for name, package in packages.items()} | {"python": platform.python_version()}


def _work(work: Work) -> dict[str, Any]:
    rate = (work.read_bytes + work.written_bytes) / max(work.seconds, 1e-9) / 1e9
    return asdict(work) | {"seconds": round(work.seconds, 3), "GB/s": round(rate, 3)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(rows: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
