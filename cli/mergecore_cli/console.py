"""The only file that prints. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from mergecore.errors import MergeError, Problem

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, and halves of characters."""
_SECRET = re.compile(r"(?<=://)[^\s/@`]+(?=@)|\bhf_[A-Za-z0-9]{16,}")
"""User and password in a URL, and tokens of the Hub."""
quiet = False
"""Set by `-q`: nothing is said but errors."""
verbose = False
"""Set by `-v`: details are told, and defects show their traceback."""


@cache
def out() -> Console:
    """For data: what a program may want to read."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, emoji=False)


@cache
def err() -> Console:
    """For talk."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Text that may hold names from files of strangers, on one line: what would steer the terminal is escaped, and what
    gives access to something is hidden.
    """
    return _UNPRINTABLE.sub(_escaped, _SECRET.sub("***", text))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def data(content: Any) -> None:
    """A table or a text, to stdout."""
    out().print(content)


def data_table(table: Table) -> None:
    """To stdout, as wide as it must be: a narrow terminal or a file would cut numbers off otherwise."""
    from rich.measure import Measurement

    table.width = Measurement.get(out(), out().options.update(max_width=10_000), table).maximum
    out().print(table)


def data_json(content: Any) -> None:
    """To stdout, for programs."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def talk(text: str) -> None:
    """One line, unless `-q`."""
    if not quiet:
        err().print(printable(text), markup=False)


def detail(text: str) -> None:
    """One line, with `-v`."""
    if verbose:
        err().print(printable(text), markup=False)


def warn(text: str) -> None:
    """One line that the user should see, unless `-q`."""
    if not quiet:
        err().print("[yellow]warning:[/yellow] ", end="")
        err().print(printable(text), markup=False)


def fail(error: MergeError) -> None:
    """All problems of an error, each with its hint."""
    for one in error.problems:
        problem(one)


def problem(found: Problem) -> None:
    """One problem, with its hint."""
    err().print("[bold red]error:[/bold red] ", end="")
    err().print(printable(str(found)), markup=False)
    if found.hint:
        err().print("[cyan]hint:[/cyan] ", end="")
        err().print(printable(found.hint), markup=False)


def gigabytes(n_bytes: float) -> str:
    """`8.80 GB`, `15.9 MB` or `2.6 KB`, as in errors."""
    from mergecore.errors import size_text

    return size_text(n_bytes)


def count(n: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


class ByteProgress:
    """A bar over the bytes written, with GB/s read and written and the time left. Shows nothing until `begin`."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._began = 0.0
        self._moved = 0

    def begin(self, total_bytes: int) -> None:
        """Show the bar. `total_bytes` more will be written."""
        self._began = time.monotonic()
        if self._bar is None:
            return
        if self._bar.tasks:
            self._bar.update(self._bar.task_ids[0], total=(self._bar.tasks[0].total or 0) + total_bytes)
        else:
            self._bar.add_task("", total=total_bytes, rate="")
            self._bar.start()

    def skip(self, n_bytes: int) -> None:
        """So many bytes are there already."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=n_bytes)

    def advance(self, read: int, written: int) -> None:
        """So many bytes have been read and written since the last call."""
        if self._bar is None:
            return
        self._moved += read + written
        rate = self._moved / 1e9 / max(time.monotonic() - self._began, 1e-3)
        self._bar.update(self._bar.task_ids[0], advance=written, rate=f"{rate:.2f} GB/s")


def shows_progress() -> bool:
    """On a terminal, unless `-q`."""
    return err().is_terminal and not quiet


@contextmanager
def byte_progress() -> Iterator[ByteProgress]:
    """A progress bar on a terminal; silent elsewhere and with `-q`."""
    if not shows_progress():
        yield ByteProgress(None)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=err(), transient=True)
    try:
        yield ByteProgress(bar)
    finally:
        bar.stop()
