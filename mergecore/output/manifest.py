"""mergecore.json: what was merged into a folder, with what, and the hash of every tensor.

`mergecore verify` compares the folder with it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from mergecore.errors import CheckpointError
from mergecore.plan.plan import Plan
from mergecore.stream.execute import Report, Work
from mergecore.stream.identity import file_identity, input_files

MANIFEST = "mergecore.json"
_FORMAT = 1


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
        "format": _FORMAT,
        "versions": {
            "mergecore": identity["mergecore"],
            "torch": _version("torch"),
            "triton": _version("triton"),
            "python": platform.python_version(),
        },
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
    return _text(content | {"checksum": _checksum(content)})


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError if there is none, or if it isn't what was written."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError.at(
            folder,
            f"has no {MANIFEST}, so there is nothing to compare it with",
            "expected a folder that mergecore wrote",
        ) from None
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError.at(path, "is damaged: it is not JSON") from error
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if checksum is None or checksum != _checksum(content):
        raise CheckpointError.at(path, "is damaged: its checksum is wrong")
    if content["format"] != _FORMAT:
        raise CheckpointError.at(path, f"has the format {content['format']}, expected {_FORMAT}", "update mergecore")
    tensors = tuple(TensorEntry(n, file, dtype, tuple(shape), h) for n, file, dtype, shape, h in content["tensors"])
    return Manifest(content, tensors)


def file_hash(path: Path) -> str:
    """Of a small file. Raises OSError."""
    return xxh3_128(path.read_bytes()).hexdigest()


def _work(work: Work) -> dict[str, Any]:
    rate = (work.read_bytes + work.written_bytes) / max(work.seconds, 1e-9) / 1e9
    return asdict(work) | {"seconds": round(work.seconds, 3), "GB/s": round(rate, 3)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checksum(content: Mapping[str, Any]) -> str:
    return xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(content: Mapping[str, Any]) -> str:
    """JSON with a line for each tensor."""
    rest = {key: value for key, value in content.items() if key != "tensors"}
    head = json.dumps(rest, indent=2)[:-2]
    return f'{head},\n  "tensors": {_lines(content["tensors"])}\n}}\n'


def _lines(rows: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
