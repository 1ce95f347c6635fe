"""The programs that are compared: `mergecore merge` of this interpreter, and mergekit in another one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mergecore.diagnostics.process_tree import Usage, run
from mergecore.errors import RunError

SEED = 0
FORMAT_SHARE = 0.99
"""Of the expected size. Tools group tensors into other shards, so headers differ."""
_VERSION = "from importlib.metadata import version; print(version('mergekit'))"
_ANSWER_S = 60


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that merges by a config: it is followed by the config and the output folder."""

    name: str
    command: tuple[str, ...]

    def merge(self, config: Path, out: Path, expected_bytes: int) -> Usage:
        """Merge into `out`, see that all weights are there, and remove them. Raises RunError."""
        command = [*self.command, str(config), str(out), "--random-seed", str(SEED), "--quiet"]
        try:
            usage = run(self.name, command, {"HF_HUB_OFFLINE": "1"})
            written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            if written < FORMAT_SHARE * expected_bytes:
                raise RunError.at(self.name, f"wrote {written} bytes of weights, but {expected_bytes} were expected")
            return usage
        finally:
            shutil.rmtree(out, ignore_errors=True)


def mergecore_tool(workers: int) -> Tool:
    """`mergecore merge` with so many workers."""
    start = "from mergecore_cli.main import main; main()"
    return Tool("mergecore", (sys.executable, "-c", start, "merge", "--workers", str(workers)))


def mergekit_tool(python: Path) -> Tool:
    """mergekit, as it is installed for the interpreter `python`. Raises RunError if it isn't."""
    hint = "name the interpreter that mergekit is installed for, such as venv/bin/python"
    try:
        asked = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer in {_ANSWER_S} s"
        raise RunError.at("--against", f"`{python}` can't be run: {reason}", hint) from error
    if asked.returncode:
        raise RunError.at("--against", f"`{python}` has no mergekit", hint)
    start = "from mergekit.scripts.run_yaml import main; main()"
    return Tool(f"mergekit {asked.stdout.strip()}", (str(python), "-c", start))
