"""The journal of a merge: what is done, in a file of the output folder, so that an interrupted run can go on.

A line is the XXH3 hash of its content, then the content as JSON. The first one tells what is merged
(`mergecore.stream.identity`); then each finished job has one, which is written after the weights that it vouches for
are on the disk. A line that was torn by a power failure has a wrong hash: it and what follows count for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from xxhash import xxh3_64_hexdigest

from mergecore.errors import RunError
from mergecore.stream.job import Outcome
from mergecore.stream.positional_io import open_to_append
from mergecore.stream.writer import telling_write_errors

if sys.platform != "win32":
    import fcntl

JOURNAL = ".mergecore-journal"
_HASH_CHARACTERS = 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""From file systems, of networks mostly, that have none: there two runs at once are not noticed."""


@dataclass(frozen=True, slots=True)
class Record:
    """A finished job: the elements [start, stop) of a tensor."""

    tensor: str
    start: int
    stop: int
    nonfinite: tuple[tuple[str, str, int], ...] = ()
    blocks: Mapping[int, bytes] = field(default_factory=dict)
    """Hashes of the tensor's blocks that lie in the job."""

    @classmethod
    def of(cls, outcome: Outcome, blocks: Mapping[int, bytes]) -> Record:
        assert outcome.job is not None
        return cls(outcome.job.tensor.name, outcome.job.start, outcome.job.stop, outcome.nonfinite, blocks)


@dataclass(slots=True)
class History:
    """What a journal tells of earlier runs."""

    identity: dict[str, Any] = field(default_factory=dict)
    """Of the merge; empty where nothing was begun."""
    records: list[Record] = field(default_factory=list)
    survey: tuple[Any] | None = None
    """What was found before the first tensor is merged, if it was: by the method's survey, or a mixture's gates."""
    finishing: bool = False
    """All weights are written, and what else is in the folder is this merge's, not of a model that was there before."""
    finished: bool = False
    """The folder is whole; later stages of the merge are not."""


class Journal:
    """The journal of one folder, which no other run can open until it is closed."""

    def __init__(self, folder: Path) -> None:
        """Open it, or begin an empty one. Raises RunError if another run has it, or if it can't be written."""
        self.path = folder / JOURNAL
        with telling_write_errors(self.path):
            self._file = _lock(self.path)
        self._lock = Lock()
        self._is_open = True
        self.history = read_history(folder)
        self.has_work = bool(self.history.records or self.history.survey)
        """Whether anything is done that a later run needn't do again."""

    def restart(self, identity: Mapping[str, Any]) -> None:
        """Forget what is there."""
        self.history = History(identity=dict(identity))
        self.has_work = False
        with telling_write_errors(self.path):
            os.ftruncate(self._file, 0)
        self._append([{"identity": identity}])

    def resume(self) -> None:
        """Go on after the last whole line."""
        with telling_write_errors(self.path):
            os.ftruncate(self._file, sum(map(len, _whole_lines(self.path.read_bytes()))))

    def add_survey(self, found: Any) -> None:
        """What a survey found, as plain JSON data. Raises RunError."""
        self.history.survey = (found,)
        self._append([{"survey": found}])
        self.has_work = True

    def add(self, records: Iterable[Record]) -> None:
        """Bring records to the disk. What they vouch for must be there already. Raises RunError."""
        self._append([_as_json(record) for record in records])
        self.has_work = True

    def mark_finishing(self) -> None:
        self.history.finishing = True
        self._append([{"finishing": True}])

    def mark_finished(self) -> None:
        self.history.finished = True
        self._append([{"finished": True}])

    def close(self) -> None:
        """Leave it to the next run. What a thread would still add is not added."""
        with self._lock:
            os.close(self._file)
            self._is_open = False

    def discard(self) -> None:
        """Remove it: nothing is left to be resumed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _append(self, contents: Iterable[Mapping[str, Any]]) -> None:
        data = memoryview(b"".join(map(_line, contents)))
        with self._lock, telling_write_errors(self.path):
            while len(data) and self._is_open:
                data = data[os.write(self._file, data) :]
            if self._is_open:
                os.fsync(self._file)


def read_history(folder: Path) -> History:
    """What the journal of a folder tells, without waiting for a run that has it. Nothing, where there is none."""
    history = History()
    path = folder / JOURNAL
    try:
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    except OSError:
        return history
    for line in _whole_lines(data):
        content = json.loads(line[_HASH_CHARACTERS + 1 :])
        if "identity" in content:
            history = History(identity=content["identity"])
        elif "survey" in content:
            history.survey = (content["survey"],)
        elif "tensor" in content:
            history.records.append(_from_json(content))
        history.finishing |= "finishing" in content
        history.finished |= "finished" in content
    return history


def _lock(path: Path) -> int:
    """The file, opened and locked. A run that ends may remove it meanwhile: then the lock is worth nothing."""
    while True:
        file = open_to_append(str(path))
        if sys.platform == "win32":
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError:
            os.close(file)
            raise RunError.at(
                path.parent,
                "another run of mergecore is writing to this folder",
                "wait for it, or write to another one",
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return file
            os.close(file)
            raise
        os.close(file)


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return f"{xxh3_64_hexdigest(text)} ".encode() + text + b"\n"


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Up to the first that isn't what was written."""
    for line in data.splitlines(keepends=True):
        text = line[_HASH_CHARACTERS + 1 : -1]
        if line != f"{xxh3_64_hexdigest(text)} ".encode() + text + b"\n":
            return
        yield line


def _as_json(record: Record) -> dict[str, Any]:
    blocks = sorted(record.blocks)
    return {
        "tensor": record.tensor,
        "start": record.start,
        "stop": record.stop,
        "nonfinite": record.nonfinite,
        "blocks": {str(block): record.blocks[block].hex() for block in blocks},
    }


def _from_json(content: Mapping[str, Any]) -> Record:
    return Record(
        content["tensor"],
        content["start"],
        content["stop"],
        tuple((tensor, model, count) for tensor, model, count in content["nonfinite"]),
        {int(block): bytes.fromhex(digest) for block, digest in content["blocks"].items()},
    )
