"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergecore_cli import console


def _quiet(value: bool) -> None:
    console.quiet = value


def _verbose(value: int) -> None:
    console.verbose = value > 0


ConfigFile = Annotated[Path, typer.Argument(help="The YAML config, as for mergekit.", metavar="CONFIG")]
Quiet = Annotated[bool, typer.Option("-q/ ", "--quiet/--no-quiet", callback=_quiet, help="Say nothing but errors.")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, callback=_verbose, help="Tell more.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", "--random-seed", show_default="drawn, and told", help="Repeats a merge with random numbers."
    ),
]
ShardSize = Annotated[
    str, typer.Option("--shard-size", "--out-shard-size", help="Largest size of a weight file: 5GB, 500MB, 2GiB.")
]
AllowCrimes = Annotated[
    bool, typer.Option("--allow-crimes/--no-allow-crimes", help="Merge models of different architectures.")
]
Tensors = Annotated[
    str,
    typer.Option(
        help="Of files of weights without a config: merge all tensors and miss none, those in common, or any.",
        metavar="all|common|any",
    ),
]
TruncateEmbeddings = Annotated[
    bool,
    typer.Option(
        "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
        help="Without a `tokenizer` in the config: cut vocabularies to the rows that all models have.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Keys that mean nothing are errors, not warnings.")]
KeepStages = Annotated[
    Path | None,
    typer.Option(
        help="Of a config with several documents: keep the models between the stages in this folder.",
        metavar="DIR", show_default="they are deleted",
    ),
]  # fmt: skip
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with merge methods. Can be given several times.", metavar="FILE"),
]
