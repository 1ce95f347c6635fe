"""The output folder: checked before a merge, completed after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.checkpoint.weight_files import INDEX_SUFFIX, written_stem
from mergecore.errors import PlanError, RunError
from mergecore.output.config_json import config_json
from mergecore.output.model_card import config_text, model_card
from mergecore.plan.plan import Plan
from mergecore.stream.writer import PARTIAL, publish_partial_files, remove_partial_files, write_error

RESOLVED_CONFIG_FILE = "mergecore_config.yml"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"


def check_folder(folder: Path, plan: Plan, *, overwrite: bool) -> None:
    """Raises PlanError if the merge can't or mustn't be written into `folder`."""
    if folder.exists() and not folder.is_dir():
        raise PlanError.at(folder, "is a file, not a folder")
    for model in [model for stage in (*plan.before, plan) for model in stage.models]:
        inputs = model.folder.parent if model.folder.is_file() else model.folder
        if folder.exists() and inputs.resolve() == folder.resolve():
            raise PlanError.at(folder, f"is the folder of the input model {model.name}", "write to another folder")
    if not overwrite and folder.exists() and any(path.suffix != PARTIAL for path in folder.iterdir()):
        raise PlanError.at(folder, "is not empty", "--overwrite replaces the model in it")
    free = free_bytes(folder)
    if free < plan.write_bytes:
        raise PlanError.at(
            folder,
            f"the disk has {free / 1e9:.1f} GB free, but the output takes {plan.write_bytes / 1e9:.1f} GB",
            "free some space, or write to another disk",
        )


def free_bytes(folder: Path) -> int:
    """Free space on the disk that `folder` is or will be on."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def start_folder(folder: Path) -> None:
    """Make the folder, without what an earlier run left unfinished."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
    except OSError as error:
        raise write_error(folder, error) from error


def abandon_folder(folder: Path) -> None:
    """After a failure: remove the unfinished weight files, and the folder if nothing else is in it."""
    remove_partial_files(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def planned_model(plan: Plan, folder: Path) -> Checkpoint:
    """The model that the merge will have written into `folder`, as a merge that comes after it sees it."""
    files = [str(folder / shard.name) for shard in plan.shards]
    tensors = {t.name: TensorRef(files[t.shard], t.offset_bytes, t.dtype, t.shape) for t in plan.tensors}
    return Checkpoint(folder, config_json(plan), tensors)


def finish_folder(folder: Path, plan: Plan, *, copy_tokenizer: bool, write_card: bool, durable: bool = True) -> None:
    """Turn the complete partial files into a model folder.

    config.json comes last, and an old one goes first, so that at no moment the folder looks like a model but isn't
    one. `durable` brings the weights to the disk before they get their names. Raises RunError.
    """
    try:
        _remove_old_model(folder, plan)
        publish_partial_files(folder, plan.shards, durable=durable)
        if copy_tokenizer:
            _copy_files(plan.models[plan.donor].folder, folder, (*TOKENIZER_FILES, GENERATION_FILE))
        _copy_files(plan.models[plan.donor].folder, folder, plan.files)
        if write_card:
            _write(folder / "README.md", model_card(plan))
        _write(folder / RESOLVED_CONFIG_FILE, config_text(plan))
        if len(plan.shards) > 1:
            _write_json(folder / _index_file(plan), _index(plan))
        if plan.donor_config:
            _write_json(folder / CONFIG_FILE, config_json(plan))
        _sync_folder(folder)
    except OSError as error:
        raise RunError.at(error.filename or folder, f"can't be written: {error.strerror}") from error


def _remove_old_model(folder: Path, plan: Plan) -> None:
    """The files of a model that was here before. What isn't a model's file stays."""
    names = [CONFIG_FILE, *TOKENIZER_FILES, GENERATION_FILE, *plan.files]
    for path in [*(folder / name for name in names), *folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}")]:
        path.unlink(missing_ok=True)


def _copy_files(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _index_file(plan: Plan) -> str:
    return f"{written_stem(plan.donor_config)}.safetensors{INDEX_SUFFIX}"


def _index(plan: Plan) -> dict[str, Any]:
    weight_map = {tensor.name: plan.shards[tensor.shard].name for tensor in plan.tensors}
    total = sum(tensor.n_bytes for tensor in plan.tensors)
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sync_folder(folder: Path) -> None:
    """Bring the new names to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
