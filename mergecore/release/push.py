"""Puts a merged model or an adapter on the Hub, if it is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergecore.api import verify
from mergecore.errors import ReleaseError
from mergecore.release.contents import contents, local_paths, not_written, read_finished


@dataclass(frozen=True, slots=True)
class Release:
    """A model or an adapter that was put on the Hub."""

    url: str
    """Of its page."""
    commit: str
    files: tuple[str, ...]
    n_bytes: int
    deleted: tuple[str, ...]
    """Files of a model that was there before."""


def push(
    out: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    show_progress: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Release:
    """Verify the folder of a merged model or an adapter, and upload it to the model repository `org/name`.

    The repository is made if needed. `revision` is a branch. Without a token of huggingface_hub's nothing is begun. The
    same call goes on after an interruption. mergecore.json goes up without the folders of this machine. `tell` and
    `warn` are given lines for the user; `show_progress` leaves huggingface_hub its progress bars.

    Raises ReleaseError, also if the folder isn't what was written, or CheckpointError if its manifest is damaged.
    """
    from mergecore.release import upload as hub  # only here, as huggingface_hub takes long to import

    folder = Path(out)
    target = hub.Repository(repository, revision)
    manifest = read_finished(folder)
    hub.check_access(target)
    tell(f"Verifying {folder}")
    found = verify(folder)
    ReleaseError.raise_if_any(found.problems)
    files = contents(folder, manifest)
    if paths := local_paths(manifest):
        warn(f"the config, which is published too, names folders of this machine: {', '.join(paths)}")
    if others := not_written(files, manifest):
        tell(f"With files that mergecore did not write: {', '.join(others)}")
    delete = hub.outdated(hub.open_repository(target, private=private), files)
    if delete:
        tell(f"Deletes files of the model that was there: {', '.join(delete)}")
    weights = list(manifest.weights)

    def on_file(name: str) -> None:
        if name in manifest.weights:
            tell(f"Uploading {name} ({weights.index(name) + 1} of {len(weights)})")

    commit = hub.upload(
        target,
        files,
        delete=delete,
        message=f"Upload {'a LoRA adapter made' if manifest.is_adapter else 'a model merged'} with mergecore",
        on_file=on_file,
        show_progress=show_progress,
    )
    n_bytes = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values())
    return Release(target.url, commit, tuple(files), n_bytes, tuple(delete))
