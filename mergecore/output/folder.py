"""The output folder: checked before a merge, completed after it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.checkpoint.tokenizer_files import GENERATION, TOKENIZER_FILES, TokenizerFiles
from mergecore.checkpoint.weight_files import INDEX_SUFFIX, written_stem
from mergecore.errors import PlanError, RunError, size_text
from mergecore.output.config_json import config_json
from mergecore.output.manifest import MANIFEST, manifest
from mergecore.output.model_card import CARD, config_text, model_card
from mergecore.output.whole_file import write_whole
from mergecore.plan.plan import Plan
from mergecore.stream.execute import Report
from mergecore.stream.identity import changed_inputs, difference, file_identity, identity, input_files, same_plan
from mergecore.stream.journal import JOURNAL, History, Journal, read_history
from mergecore.stream.writer import (
    PARTIAL,
    partial_path,
    prepare_partial_files,
    publish_partial_files,
    remove_partial_files,
    reserved_bytes,
    telling_write_errors,
    unpublish_files,
    write_error,
)

RESOLVED_CONFIG_FILE = "mergecore_config.yml"


def check_folder(folder: Path, plan: Plan, *, overwrite: bool) -> None:
    """Raises PlanError if the merge can't or mustn't be written into `folder`."""
    try:
        folder.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise PlanError.at(folder, f"can't be written: {error.strerror}") from error
    if folder.exists() and not folder.is_dir():
        raise PlanError.at(folder, "is a file, not a folder")
    for model in [model for stage in (*plan.before, plan) for model in stage.models]:
        inputs = model.folder.parent if model.folder.is_file() else model.folder
        if folder.exists() and inputs.resolve() == folder.resolve():
            raise PlanError.at(folder, f"is the folder of the input model {model.name}", "write to another folder")
    if folder.exists() and folder.resolve() in _folders_read(plan):
        raise PlanError.at(folder, "holds files that the merge reads", "write to another folder")
    if not overwrite and folder.exists() and _holds_something_else(folder, plan):
        raise PlanError.at(folder, "is not empty", "--overwrite replaces the model in it")
    free, needed = free_bytes(folder), plan.write_bytes - reserved_bytes(folder, plan.shards)
    if free < needed:
        raise PlanError.at(
            folder,
            f"the disk has {size_text(free)} free, but the output takes {size_text(needed)}",
            "free some space, or write to another disk",
        )


def _folders_read(plan: Plan) -> set[Path]:
    """Where the files lie that the merge reads: adapters, and what links in the models' folders lead to."""
    files = {Path(file) for stage in (*plan.before, plan) for file in input_files(stage)}
    folders = {Path(os.path.realpath(file)).parent for file in files} | {file.parent.resolve() for file in files}
    return folders | {stage.tokenizer.folder.resolve() for stage in (*plan.before, plan)}


def _holds_something_else(folder: Path, plan: Plan) -> bool:
    """Whether there is anything that an interrupted run of this merge didn't write."""
    history = read_history(folder)
    if history.finishing and same_plan(history.identity, plan):
        return False
    return any(path.suffix != PARTIAL and path.name != JOURNAL for path in folder.iterdir())


def free_bytes(folder: Path) -> int:
    """Free space on the disk that `folder` is or will be on."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def is_finished(folder: Path, plan: Plan) -> bool:
    """Whether an earlier run of a merge of several stages, which was interrupted, has written this one as a whole."""
    history = read_history(folder)
    return history.finished and restart_reason(folder, plan, history, identity(plan)) is None


def start_folder(folder: Path, plan: Plan, *, resume: bool, on_restart: Callable[[str], None]) -> Journal:
    """Make the folder, with partial files and a journal, or if `resume` go on with those of an earlier run.

    `on_restart` is told why that isn't possible, if it isn't. Raises RunError, and if another run is at it.
    """
    with telling_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    try:
        now = identity(plan)
        reason = restart_reason(folder, plan, journal.history, now)
        if resume and reason is None:
            journal.resume()
            if journal.history.finishing:
                _hide(folder, plan)
        else:
            if resume and reason:
                on_restart(reason)
            journal.restart(now)
            remove_partial_files(folder)
        prepare_partial_files(folder, plan.shards)
    except BaseException:
        leave_folder(folder, journal)
        raise
    return journal


def restart_reason(folder: Path, plan: Plan, history: History, now: Mapping[str, Any]) -> str | None:
    """Why the work of an earlier run is worth nothing; None if it isn't. Empty if there was none."""
    if not history.identity:
        return ""
    reason = difference(history.identity, now)
    if reason is not None:
        return reason
    shard_of = {tensor.name: plan.shards[tensor.shard] for tensor in plan.tensors}
    needed = plan.shards if history.finishing else {shard_of[record.tensor] for record in history.records}
    for shard in needed:
        if _size(partial_path(folder, shard)) != shard.n_bytes and (
            not history.finishing or _size(folder / shard.name) != shard.n_bytes
        ):
            return f"{shard.name} is not what it left"
    return None


def leave_folder(folder: Path, journal: Journal) -> bool:
    """After a failure: whether there is something to go on with. If not, remove what was begun."""
    if journal.has_work:
        journal.close()
        return True
    remove_partial_files(folder)
    journal.discard()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return False


def planned_model(plan: Plan, folder: Path) -> Checkpoint:
    """The model that the merge will have written into `folder`, as a merge that comes after it sees it."""
    files = [str(folder / shard.name) for shard in plan.shards]
    tensors = {t.name: TensorRef(files[t.shard], t.offset_bytes, t.dtype, t.shape) for t in plan.tensors}
    return Checkpoint(folder, config_json(plan), tensors, tokenizer=plan.tokenizer)


def finish_folder(
    folder: Path,
    plan: Plan,
    report: Report,
    journal: Journal,
    *,
    options: Mapping[str, Any],
    copy_tokenizer: bool,
    write_card: bool,
) -> None:
    """Turn the complete partial files into a model folder.

    config.json comes last, and an old one goes first, so that at no moment the folder looks like a model but isn't
    one; then comes the manifest, which tells the `options` of the merge, too. Raises RunError.
    """
    _check_inputs(plan, journal.history.identity["inputs"])
    journal.mark_finishing()
    try:
        _remove_old_model(folder, plan)
        publish_partial_files(folder, plan.shards)
        if copy_tokenizer or plan.tokenizer.written:
            _write_tokenizer(folder, plan.tokenizer)
        _copy_files(plan.models[plan.donor].folder, folder, plan.files)
        if write_card:
            write_whole(folder / CARD, model_card(plan))
        write_whole(folder / RESOLVED_CONFIG_FILE, config_text(plan))
        if len(plan.shards) > 1:
            _write_json(folder / _index_file(plan), _index(plan))
        if plan.donor_config:
            _write_json(folder / CONFIG_FILE, config_json(plan))
        names = [path.name for path in (folder / name for name in _written_files(plan)) if path.is_file()]
        content = manifest(folder, plan, report, journal.history.identity, files=names, options=options)
        write_whole(folder / MANIFEST, content)
        _sync_folder(folder)
    except OSError as error:
        raise write_error(Path(error.filename or folder), error) from error
    journal.mark_finished()


def _check_inputs(plan: Plan, before: Mapping[str, Any]) -> None:
    """Raises RunError if an input was written while it was read. One that is gone by now was read before that."""
    there = [file for file in input_files(plan) if Path(file).exists()]
    changed = changed_inputs({file: before[file] for file in there}, {file: file_identity(file) for file in there})
    if changed:
        hint = "give the same command again once it is whole"
        raise RunError.at(changed[0], "has changed while it was merged, so the result is worth nothing", hint)


def _written_files(plan: Plan) -> list[str]:
    """All that may be written beside the weights, but for the card, which people edit."""
    names = [
        *plan.tokenizer.written,
        *TOKENIZER_FILES,
        GENERATION,
        *plan.files,
        RESOLVED_CONFIG_FILE,
        _index_file(plan),
        CONFIG_FILE,
    ]
    return list(dict.fromkeys(names))


def _hide(folder: Path, plan: Plan) -> None:
    """Take back what a run had published that was interrupted at its end: it isn't a model any more, nor yet."""
    for name in (MANIFEST, CONFIG_FILE, _index_file(plan)):
        (folder / name).unlink(missing_ok=True)
    unpublish_files(folder, plan.shards)


def _remove_old_model(folder: Path, plan: Plan) -> None:
    """The files of a model that was here before. What isn't a model's file stays."""
    names = [MANIFEST, CONFIG_FILE, *TOKENIZER_FILES, GENERATION, *plan.files]
    for path in [*(folder / name for name in names), *folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}")]:
        path.unlink(missing_ok=True)


def _write_tokenizer(folder: Path, tokenizer: TokenizerFiles) -> None:
    """What was made for this merge, and copies of what wasn't."""
    _copy_files(tokenizer.folder, folder, tokenizer.copied)
    for name in tokenizer.written:
        (folder / name).write_bytes(tokenizer.content(name))


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


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _sync_folder(folder: Path) -> None:
    """Bring the new names to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
