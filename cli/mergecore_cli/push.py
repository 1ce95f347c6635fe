"""`mergecore push`: put a merged model or an adapter on the Hub."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mergecore_cli import console
from mergecore_cli.options import Quiet


def push(
    out: Annotated[Path, typer.Argument(help="The folder of a merged model or an adapter.", metavar="OUT")],
    repository: Annotated[str, typer.Argument(help="The repository, which is made if needed.", metavar="ORG/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="The branch to upload to, which is made if needed.", metavar="BRANCH", show_default="main"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Verify a merged model or an adapter and upload it to the Hub. Prints the URL.

    The token is huggingface_hub's: `hf auth login`, or HF_TOKEN. After an interruption, give the same command again.
    """
    from mergecore.release.push import push

    began = time.monotonic()
    release = push(
        out,
        repository,
        private=private,
        revision=revision,
        show_progress=console.shows_progress(),
        tell=console.talk,
        warn=console.warn,
    )
    what = f"{console.count(len(release.files), 'file')}, {console.gigabytes(release.n_bytes)}"
    console.talk(f"Uploaded {what}, commit {release.commit[:10]} ({time.monotonic() - began:.1f} s)")
    console.data(release.url)
