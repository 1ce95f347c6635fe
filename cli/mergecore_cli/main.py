"""`mergecore`: the commands, and the one place where errors become messages and exit codes.

Imports neither torch nor the merging code: each command does so when it runs, so `--help` answers at once.
"""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from mergecore_cli import console
from mergecore_cli.bench import bench
from mergecore_cli.doctor import doctor
from mergecore_cli.eval import eval_
from mergecore_cli.extract_lora import extract_lora
from mergecore_cli.merge import merge
from mergecore_cli.merge_lora import merge_lora
from mergecore_cli.methods import methods
from mergecore_cli.moe import moe
from mergecore_cli.plan import plan
from mergecore_cli.push import push
from mergecore_cli.verify import verify

app = typer.Typer(
    help="Merge the weights of language models: mergekit configs in, a Hugging Face model folder out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("merge")(merge)
app.command("moe")(moe)
app.command("plan")(plan)
app.command("extract-lora")(extract_lora)
app.command("merge-lora")(merge_lora)
app.command("methods")(methods)
app.command("eval")(eval_)
app.command("verify")(verify)
app.command("push")(push)
app.command("doctor")(doctor)
app.add_typer(bench, name="bench")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        console.data(f"mergecore {version('mergecore-triton')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


def _terminate(number: int, _: FrameType | None) -> None:
    """End as after an error, so that what was begun is left in order."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line.

    Exit code 0: done; 1: the merge failed; 2: wrong usage or config; 130: interrupted; 143: terminated.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except BrokenPipeError:  # the reader of our output has gone
        sys.exit(0)
    except Exception as error:
        from mergecore.errors import MergeError

        if not isinstance(error, MergeError):
            raise
        console.fail(error)
        sys.exit(error.exit_code)
    finally:
        if "torch" not in sys.modules:  # triton, which it loads, complains of objects that aren't freed
            gc.freeze()  # there is nothing to free before the end: a search for garbage takes a twentieth of a second
