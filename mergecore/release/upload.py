"""Uploads files to a repository on the Hub.

Files are sent one after the other and become visible all at once, by one commit. What was sent before an interruption
is not sent again: the Hub knows it by its hash. huggingface_hub decides about endpoint, token and being offline; what
it says is not repeated, as it may hold what is secret.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # the base class of all errors of its HTTP client
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

from mergecore.checkpoint.location import HUB_NAME
from mergecore.checkpoint.tokenizer_files import GENERATION, TOKENIZER_FILES
from mergecore.checkpoint.weight_files import INDEX_SUFFIX
from mergecore.errors import ReleaseError
from mergecore.output.model_card import CARD

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_AGAIN = "give the same command again: what is there already is not sent again"


@dataclass(frozen=True, slots=True)
class Repository:
    """Where to upload to."""

    name: str
    """`org/name`"""
    revision: str | None = None
    """A branch; None for the main one."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def url(self) -> str:
        """Of its page."""
        branch = "" if self.revision is None else f"/tree/{self.revision}"
        return f"{_endpoint()}/{self.name}{branch}"


def check_access(repository: Repository) -> None:
    """Raises ReleaseError if there can be no such repository, no token, or no answer to it."""
    if not HUB_NAME.fullmatch(repository.name):
        raise ReleaseError.at("", f"`{repository.name}` is not the name of a repository", "write it like org/name")
    with _explained(repository):
        HfApi().whoami()


def open_repository(repository: Repository, *, private: bool) -> set[str]:
    """Make the repository and its branch where there are none, and tell the names of the files that are there.

    Raises ReleaseError, also if it is to be private and is public.
    """
    api = HfApi()
    with _explained(repository):
        try:
            info = api.model_info(repository.name)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            api.create_repo(repository.name, private=private or None)
            info = api.model_info(repository.name)
        if private and not info.private:
            hint = "make it private in its settings first, or push to another one"
            raise ReleaseError.at(repository, "is public, and --private only makes new repositories private", hint)
        if repository.revision is not None:
            try:
                info = api.model_info(repository.name, revision=repository.revision)
            except RevisionNotFoundError:
                api.create_branch(repository.name, branch=repository.revision)
        return {file.rfilename for file in info.siblings or ()}


def outdated(there: set[str], files: Mapping[str, Path | bytes]) -> list[str]:
    """The weights and tokenizer files of a model that was there before, which the new one doesn't replace."""
    ends = (".safetensors", f".safetensors{INDEX_SUFFIX}")
    known = {*TOKENIZER_FILES, GENERATION}
    return sorted(name for name in there - files.keys() if name in known or ("/" not in name and name.endswith(ends)))


def upload(
    repository: Repository,
    files: Mapping[str, Path | bytes],
    *,
    delete: list[str],
    message: str,
    on_file: Callable[[str], None],
    show_progress: bool,
) -> str:
    """Send files, by their names in the repository, and commit them. Returns the commit.

    on_file is told each name before it is sent. Raises ReleaseError, also if the Hub has something else in the end.
    """
    api = HfApi()
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _explained(repository), _progress(show_progress):
        for addition in additions:  # one after another: threads could not be interrupted
            on_file(addition.path_in_repo)
            api.preupload_lfs_files(repository.name, [addition], revision=repository.revision, free_memory=False)
        deletions = [CommitOperationDelete(name) for name in delete]
        commit = api.create_commit(
            repository.name, [*additions, *deletions], commit_message=message, revision=repository.revision
        ).oid
        info = api.model_info(repository.name, revision=commit, files_metadata=True)
    there = {file.rfilename: file.size for file in info.siblings or ()}
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if there.get(name) != size:
            found = "not there" if name not in there else f"{there[name]} bytes long"
            what = f"{name} is {found} after the upload, expected {size} bytes"
            raise ReleaseError.at(repository, what, "does a .gitignore in the repository leave it out?")
    return str(commit)


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[None]:
    """huggingface_hub's bars, or nothing of it at all."""
    before, level = are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not before:
            enable_progress_bars()


def _endpoint() -> str:
    """Without user and password."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@contextlib.contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """Say in a line what huggingface_hub says in many."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, HTTPError) as error:
        wrapped = error.__cause__ if isinstance(error, RuntimeError) else None  # what stopped the sending of a file
        what, hint = _explanation(wrapped or error, repository)
        raise ReleaseError.at(repository, what, hint) from error


def _explanation(error: BaseException, repository: Repository) -> tuple[str, str]:
    """What an error means for the user, and what to do."""
    host = urlsplit(constants.ENDPOINT).hostname
    if isinstance(error, LocalTokenNotFoundError):
        return "can't be written to without a token", _LOG_IN
    if isinstance(error, OfflineModeIsEnabled):
        return "can't be reached: HF_HUB_OFFLINE is set", ""
    if isinstance(error, RevisionNotFoundError):
        return f"has no branch `{repository.revision}`", "give the name of a branch"
    if isinstance(error, HfHubHTTPError):
        return _answer(error.response.status_code, str(host))
    if isinstance(error, HTTPError):
        return f"there is no connection to {host} ({type(error).__name__})", _AGAIN
    if isinstance(error, ValueError) and CARD in str(error):
        return f"the Hub doesn't accept the metadata at the top of {CARD}", "see the model card's documentation"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} can't be read: {error.strerror}", ""
    return f"the upload to {host} broke off ({type(error).__name__})", _AGAIN


def _answer(status: int, host: str) -> tuple[str, str]:
    if status == 401:
        return f"{host} refuses the token", _LOG_IN
    if status == 403:
        return "your token must not write to it", f"give it the right to write at {_endpoint()}/settings/tokens"
    if status == 404:
        return "is not there, or your account can't see it", "is the name right?"
    if status == 409:
        return "somebody else has it, or is writing to it at this moment", _AGAIN
    if status == 429:
        return f"{host} wants fewer requests (429)", f"wait a while, then {_AGAIN}"
    return f"{host} answers with the error {status}", _AGAIN if status >= 500 else ""
