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
Out = Annotated[Path, typer.Argument(help="The folder to write the model to.", metavar="OUT")]
Device = Annotated[
    str | None,
    typer.Option(show_default="cpu", help="Where to compute: cpu, cuda (all GPUs), cuda:1, or cuda:0,cuda:2."),
]
Cuda = Annotated[bool, typer.Option("--cuda/--no-cuda", help="The same as --device cuda.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", "--num-threads", min=0, show_default="one per core", help="Worker processes."),
]
Memory = Annotated[str, typer.Option(help="Memory for buffers, in all workers together.")]
DeviceMemory = Annotated[
    str | None, typer.Option(show_default="80 % of what is free", help="Memory to use on each GPU: 20GB.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model in OUT.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
CopyTokenizer = Annotated[
    bool,
    typer.Option(
        "--copy-tokenizer/--no-copy-tokenizer",
        help="Copy the tokenizer's files to OUT. One that the config asks for is written anyhow.",
    ),
]
WriteModelCard = Annotated[
    bool, typer.Option("--write-model-card/--no-write-model-card", help="Write README.md to OUT.")
]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Merge weights that are NaN or infinite.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted run left in OUT.")]
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
HiddenFlag = Annotated[bool, typer.Option(hidden=True)]
"""An option of mergekit's that has nothing to do here: scripts that use it go on working."""
HiddenText = Annotated[str | None, typer.Option(hidden=True)]
"""The same with a value."""
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with merge methods. Can be given several times.", metavar="FILE"),
]
