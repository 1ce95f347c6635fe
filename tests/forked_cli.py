"""The command line in processes that begin at once, to be killed: each is forked from one that has loaded torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

_PARENT = """
import json, os, sys, traceback
import torch
from mergecore.stream import merger, recorder
from mergecore_cli.main import main
torch.set_num_threads(1)
recorder.INTERVAL_S = 0.005
for line in sys.stdin:
    arguments, errors = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = ["mergecore", *arguments]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class ForkedCommands:
    """Starts one command after the other. They write to the journal every few milliseconds."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors

    def __enter__(self) -> ForkedCommands:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._parent.communicate()

    def start(self, *arguments: object) -> int:
        """The id of the process that runs `mergecore` with these arguments."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps([list(map(str, arguments)), str(self._errors)]) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Its exit code, or minus the signal that killed it, and what it said."""
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline()), self._errors.read_text()

    def run(self, *arguments: object) -> tuple[int, str]:
        """Start a command and wait for it."""
        self.start(*arguments)
        return self.wait()

    def runs(self, pid: int) -> bool:
        """Whether the process has not ended."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def interrupt(self, pid: int, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
