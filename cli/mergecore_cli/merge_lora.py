"""`mergecore merge-lora`: several LoRA adapters of one model into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import ConfigFile, Quiet, Seed
from mergecore_cli.plan import tell_download

if TYPE_CHECKING:
    from mergecore.adapters.merge import AdapterMerge


def merge_lora(
    config: ConfigFile,
    out: Annotated[Path, typer.Argument(help="The folder to write the merged adapter to.", metavar="OUT")],
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge LoRA adapters into one that PEFT can load. Their base model isn't read.

    The methods are linear, cat, svd, ties, dare_linear and dare_ties, as PEFT defines them.
    """
    import mergecore

    merged = mergecore.merge_lora(config, out, seed=seed, overwrite=overwrite, on_download=tell_download)
    for note in merged.notes:
        console.warn(note)
    if json:
        console.data_json(_facts(merged))
    ranks = sorted(set(merged.ranks.values()))
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    error = "" if merged.error is None else f", relative error {merged.error:.4f}"
    drawn = "" if merged.seed is None else f", seed {merged.seed}"
    console.talk(f"Merged {console.count(len(merged.ranks), 'module')} by {merged.method}: {rank}{error}{drawn}")
    console.talk(f"Wrote {merged.folder} ({console.gigabytes(merged.n_bytes)})")


def _facts(merged: AdapterMerge) -> dict[str, Any]:
    return {
        "folder": str(merged.folder),
        "method": merged.method,
        "ranks": merged.ranks,
        "relative_error": merged.error,
        "seed": merged.seed,
        "bytes": merged.n_bytes,
        "notes": list(merged.notes),
    }
