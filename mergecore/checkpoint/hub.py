"""Models on the Hub: what they hold by small requests, and downloads into huggingface_hub's cache.

huggingface_hub decides about the endpoint, the cache, the token and being offline (HF_ENDPOINT, HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE). Its cache's layout is documented: `models--org--name` holds `snapshots/<commit>/<file>`, and in
`refs/<branch or tag>` the commit that it was last seen at. A revision is resolved to a commit once, and all later
requests name that commit.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of all errors of its HTTP client
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from mergecore.checkpoint.checkpoint import Checkpoint, LocalFiles, checkpoint_of, read_weights, together
from mergecore.checkpoint.json_file import check_size, parse_json, read_json
from mergecore.checkpoint.location import Download, HubModel, OnDownload
from mergecore.checkpoint.safetensors_file import TensorRef, parse_header
from mergecore.checkpoint.weight_files import BESIDE_WEIGHTS
from mergecore.errors import CheckpointError, size_text

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(r"(?!\.{0,2}\Z)[^/\\\x00-\x1f]+")
"""The name of a file that lies in no sub-folder, nor anywhere else."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_FIRST_BYTES = 1 << 17
"""Asked for at once: most headers are shorter."""
_REQUESTS = 8
"""At the same time."""
_TIMEOUT_S = 20


class UnreachableError(CheckpointError):
    """The Hub gives no answer, or must not be asked."""


def open_model(model: HubModel, on_download: OnDownload) -> Checkpoint:
    """The model at the commit that its revision means now, or meant when it was last downloaded if the Hub can't be
    reached.

    Raises CheckpointError for a repository, revision or file that isn't there or isn't for this user.
    """
    try:
        files = HubFiles.ask(model, on_download)
    except UnreachableError as error:
        return _from_cache(model, error)
    opened = checkpoint_of(files)
    parts = (part for tensor in opened.tensors.values() for part in tensor.parts)
    needed = [*files.beside_weights, *sorted({Path(part.file).name for part in parts})]
    return replace(opened, commit=files.commit, download=files.missing(needed))


def fetch_adapter(model: HubModel, on_download: OnDownload) -> Path:
    """The folder of a LoRA adapter on the Hub, which is downloaded if it isn't in the cache. Raises CheckpointError."""
    try:
        files = HubFiles.ask(model, on_download)
    except UnreachableError as error:
        return _cached_snapshot(model, error)
    files.fetch([name for name in _ADAPTER_FILES if name in files.names], "an adapter is needed to plan the merge")
    return files.folder


def fetch_tokenizer(model: HubModel, on_download: OnDownload) -> Path:
    """The folder of a model on the Hub, with all files but the weights in it. Raises CheckpointError."""
    try:
        files = HubFiles.ask(model, on_download)
    except UnreachableError as error:
        return _cached_snapshot(model, error)
    files.fetch(files.beside_weights, "the tokenizer is needed to plan the merge")
    return files.folder


def download(missing: Download) -> None:
    """Download files into the cache. Raises CheckpointError, also if there is no space for them."""
    model = missing.model
    cache = _repo_folder(model.repo)
    with _explained(model):
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < missing.n_bytes:
            raise CheckpointError.at(
                model,
                f"{size_text(missing.n_bytes)} must be downloaded, but the disk of {cache} has {size_text(free)} free",
                "free some space, or set HF_HOME to a folder on another disk",
            )
        for name in missing.files:  # one after another: threads could not be interrupted
            hf_hub_download(model.repo, name, revision=missing.commit)
        _remember(model, missing.commit)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a repository at one commit."""

    model: HubModel
    commit: str
    sizes: dict[str, int]
    """Bytes of each file that is not in a sub-folder."""
    on_download: OnDownload

    @classmethod
    def ask(cls, model: HubModel, on_download: OnDownload) -> HubFiles:
        """Raises UnreachableError if there is no answer, other CheckpointErrors if the answer is no."""
        _reference(model)
        with _explained(model):
            info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True, timeout=_TIMEOUT_S)
        if not _COMMIT.fullmatch(str(info.sha)):
            raise CheckpointError.at(model, f"the Hub says that its commit is {str(info.sha)!r:.60}, which is none")
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _PLAIN.fullmatch(file.rfilename)}
        return cls(model, str(info.sha), sizes, on_download)

    @property
    def folder(self) -> Path:
        return _snapshot(self.model.repo, self.commit)

    @property
    def where(self) -> str:
        return str(self.model)

    @property
    def names(self) -> Collection[str]:
        return self.sizes.keys()

    @property
    def beside_weights(self) -> list[str]:
        """The files that go with any weights."""
        return sorted(name for name in self.sizes if name.endswith(BESIDE_WEIGHTS))

    def json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if path.exists():
            return read_json(path)
        check_size(f"{self.model}/{name}", self.sizes[name])
        return parse_json(f"{self.model}/{name}", self._first_bytes(name, self.sizes[name]))

    def tensors(self, names: Sequence[str]) -> dict[str, TensorRef]:
        pickled = [name for name in names if not name.endswith(".safetensors")]
        if pickled:
            self.fetch([*self.beside_weights, *pickled], "pickled weights are needed to plan the merge")
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return together(self.model, pool.map(self._tensors_of, names))

    def missing(self, names: Sequence[str]) -> Download | None:
        """Those of some files that are not in the cache."""
        absent = tuple(name for name in names if not (self.folder / name).exists())
        return Download(self.model, self.commit, absent, sum(self.sizes[name] for name in absent)) if absent else None

    def fetch(self, names: Sequence[str], reason: str) -> None:
        """Download some files now, unless they are in the cache."""
        missing = self.missing(names)
        if missing is not None:
            self.on_download(replace(missing, reason=reason))
            download(missing)

    def _tensors_of(self, name: str) -> dict[str, TensorRef]:
        path = self.folder / name
        if path.exists():
            return read_weights(path)
        first = self._first_bytes(name, min(_FIRST_BYTES, self.sizes[name]))

        def read(n_bytes: int) -> bytes:
            return first[:n_bytes] if n_bytes <= len(first) else self._first_bytes(name, n_bytes)

        return parse_header(path, self.sizes[name], read)

    def _first_bytes(self, name: str, n_bytes: int) -> bytes:
        """Read as a stream, so that a server which ignores the range doesn't send the whole file."""
        if n_bytes == 0:
            return b""
        url = hf_hub_url(self.model.repo, name, revision=self.commit)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{n_bytes - 1}", "Accept-Encoding": "identity"}
        found = bytearray()
        with (
            _explained(self.model),
            get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as response,
        ):
            hf_raise_for_status(response)
            for part in response.iter_bytes():
                found += part
                if len(found) >= n_bytes:
                    break
        return bytes(found[:n_bytes])


def _from_cache(model: HubModel, error: UnreachableError) -> Checkpoint:
    folder = _cached_snapshot(model, error)
    try:
        opened = checkpoint_of(LocalFiles(folder))
    except CheckpointError as incomplete:
        raise UnreachableError(*error.problems, *incomplete.problems) from incomplete
    return replace(opened, commit=folder.name)


def _cached_snapshot(model: HubModel, error: UnreachableError) -> Path:
    """The folder that the model was downloaded to before. Raises `error` if it never was."""
    reference = _reference(model)
    is_commit = model.revision is not None and _COMMIT.fullmatch(model.revision)
    commit = str(model.revision) if is_commit else reference.read_text().strip() if reference.is_file() else ""
    folder = _snapshot(model.repo, commit)
    if not commit or not folder.is_dir():
        raise error
    return folder


def _remember(model: HubModel, commit: str) -> None:
    """Note which commit the revision means, for when the Hub can't be reached."""
    reference = _reference(model)
    if model.revision != commit:
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def _reference(model: HubModel) -> Path:
    """The file that says which commit the revision means. Raises CheckpointError for a name that leads elsewhere."""
    name = PurePosixPath(model.revision or "main")
    if name.is_absolute() or ".." in name.parts or "\\" in str(name):
        raise CheckpointError.at(model, f"`{name}` can't be the name of a branch, tag or commit")
    return _repo_folder(model.repo) / "refs" / name


def _repo_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _snapshot(repo: str, commit: str) -> Path:
    return _repo_folder(repo) / "snapshots" / commit


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Say in a line what huggingface_hub says in many. Its own texts are left out: they may hold what is secret."""
    endpoint = urlsplit(constants.ENDPOINT)
    host = endpoint.hostname
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    unreachable = partial(_unreachable, model)
    try:
        yield
    except GatedRepoError as error:
        page = f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}/{model.repo}"
        raise CheckpointError.at(
            model, "is gated, and your account has no access to it", f"ask for access at {page}, then {log_in}"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError.at(model, f"has no branch, tag or commit `{model.revision or 'main'}`") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        what = f"is neither a folder here nor a model on {host} that you may read"
        raise CheckpointError.at(model, what, model.hint or f"if it is private, {log_in}") from error
    except OfflineModeIsEnabled as error:
        raise unreachable("HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise CheckpointError.at(model, f"{host} refuses the token", log_in) from error
        raise unreachable(f"{host} answers with the error {status}") from error
    except LocalEntryNotFoundError as error:
        raise unreachable(f"the connection to {host} broke off") from error
    except HTTPError as error:
        raise unreachable(f"there is no connection to {host} ({type(error).__name__})") from error
    except OSError as error:
        raise CheckpointError.at(model, f"can't be downloaded: {error.strerror or type(error).__name__}") from error


def _unreachable(model: HubModel, why: str) -> UnreachableError:
    hint = model.hint or "what was downloaded before is found in the cache; HF_HOME says where that is"
    return UnreachableError.at(model, f"is no folder here, and can't be downloaded: {why}", hint)
