"""Where a benchmark of merges works: the generated models, and the folder for outputs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mergecore.diagnostics.merge_bench_models import ModelSet, Progress, generate, is_generated
from mergecore.errors import RunError, size_text
from mergecore.output.folder import free_bytes


@contextmanager
def output_folder(out: Path | None) -> Iterator[Path]:
    """A new folder in `out`, or in the system's folder for temporary files. It is removed in the end."""
    folder = _new_folder("mergecore-outputs-", out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def generated_models(
    wanted: ModelSet, folder: Path | None, outputs: Path, keep: bool, tell: Callable[[str], None], progress: Progress
) -> Iterator[list[Path]]:
    """The folders of the models in `folder`, or in a new folder beside `outputs`; the base first.

    Those that are there already are taken as they are, and stay; new ones are removed in the end unless `keep`.
    Raises RunError if there is no room for them and an output.
    """
    place = _new_folder("mergecore-models-", outputs.parent) if folder is None else _made(folder)
    is_there = stays = is_generated(wanted, place)
    try:
        _check_room(place, 0 if is_there else wanted.n_bytes, outputs, wanted.model_bytes)
        if not is_there:
            tell(f"Generating {1 + wanted.tunes} models, {size_text(wanted.n_bytes)}, in {place}")
            generate(wanted, place, progress)
            stays = keep
        yield wanted.folders(place)
    finally:
        if not stays:
            shutil.rmtree(place, ignore_errors=True)


def tiny_models(like: ModelSet, outputs: Path) -> list[Path]:
    """As many models of the same kind, as small as can be: merging them takes no longer than starting up."""
    place = outputs / "tiny"
    place.mkdir()
    return generate(replace(like, shape=like.shape.tiny()), place)


def _new_folder(prefix: str, parent: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise RunError.at("--out", f"`{parent}` can't be written to: {error.strerror}") from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError.at("--folder", f"`{folder}` can't be made: {error.strerror}") from error
    return folder


def _check_room(models: Path, models_bytes: int, outputs: Path, output_bytes: int) -> None:
    if models.stat().st_dev == outputs.stat().st_dev:
        _require_free(models, "the models and an output take", models_bytes + output_bytes)
    else:
        _require_free(models, "the models take", models_bytes)
        _require_free(outputs, "an output takes", output_bytes)


def _require_free(folder: Path, what: str, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise RunError.at(
            folder,
            f"the disk has {size_text(free)} free, but {what} {size_text(needed)}",
            "take fewer --layers or --models, or other disks by --folder and --out",
        )
