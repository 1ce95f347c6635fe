"""`mergecore extract-lora`: what a fine-tuned model has learned, as a LoRA adapter for its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Quiet
from mergecore_cli.plan import tell_download

if TYPE_CHECKING:
    from mergecore.adapters.report import Extraction, TensorReport


def extract_lora(
    model: Annotated[str, typer.Argument(help="The fine-tuned model: a folder, or org/name.", metavar="MODEL")],
    out: Annotated[Path, typer.Argument(help="The folder to write the adapter to.", metavar="OUT")],
    base: Annotated[str, typer.Option("--base", "--base-model", help="The model that it was fine-tuned from.")],
    rank: Annotated[
        int | None, typer.Option("--rank", "--max-rank", show_default="16", help="Rank of every matrix.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Or: the share of the squared singular values that each matrix keeps: 0.95.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Or: parameters in all factors, spent where they matter most: 500K, 20M.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", "-i", "--include-regex", help="Only modules whose name has this; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", "-e", "--exclude-regex", help="No modules whose name has this; may be repeated."),
    ] = None,
    save_module: Annotated[
        list[str] | None, typer.Option(help="A module to hold as it is, by name or last part; may be repeated.")
    ] = None,
    embed_lora: Annotated[
        bool, typer.Option("--embed-lora/--no-embed-lora", help="Factors for embeddings and output heads, too.")
    ] = False,
    skip_undecomposable: Annotated[
        bool, typer.Option("--skip-undecomposable", help="Leave out norms and whatever else can't have factors.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the factors: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a LoRA adapter that makes MODEL of its base, as well as its rank allows, and that PEFT can load.

    The report tells of each matrix the rank, the relative error of what the adapter adds, and the energy kept.
    """
    import mergecore

    with console.byte_progress() as progress:
        found = mergecore.extract_lora(
            model,
            base,
            out,
            rank=rank,
            energy=energy,
            budget=budget,
            include=include or (),
            exclude=exclude or (),
            modules_to_save=save_module or (),
            embed_lora=embed_lora,
            skip_undecomposable=skip_undecomposable,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
            on_download=tell_download,
            on_begin=progress.begin,
            on_progress=lambda n_bytes: progress.advance(0, n_bytes),
        )
    for note in found.notes:
        console.warn(note)
    if json:
        console.data_json(_facts(found))
    else:
        _print_table(found)
    wholes = [tensor for tensor in found.tensors if tensor.rank is None]
    console.talk(
        f"Extracted {console.count(len(found.matrices), 'tensor')} by {found.rule}: relative error {found.error:.4f}, "
        f"energy kept {found.energy:.4f}, {found.parameters:,} parameters"
    )
    if wholes:
        console.talk(f"Held {console.count(len(wholes), 'other tensor')} as they are")
    console.talk(f"Wrote {found.folder} ({console.gigabytes(found.n_bytes)})")


def _print_table(found: Extraction) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tensor")
    table.add_column("shape")
    for column in ("rank", "error", "energy"):
        table.add_column(column, justify="right")
    table.add_column("values")
    for tensor in found.tensors:
        name, shape = escape(console.printable(tensor.name)), " x ".join(map(str, tensor.shape))
        if tensor.rank is None:
            table.add_row(name, shape, "whole", "", "", "")
        else:
            method = "exact" if tensor.exact else "sketched"
            table.add_row(name, shape, str(tensor.rank), f"{tensor.error:.4f}", f"{tensor.energy:.4f}", method)
    console.data_table(table)


def _facts(found: Extraction) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "ranks": str(found.rule),
        "relative_error": found.error,
        "energy": found.energy,
        "parameters": found.parameters,
        "bytes": found.n_bytes,
        "tensors": [_tensor_facts(tensor) for tensor in found.tensors],
        "unchanged": list(found.unchanged),
        "notes": list(found.notes),
    }


def _tensor_facts(tensor: TensorReport) -> dict[str, Any]:
    """A tensor that is held as it is has no rank."""
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "rank": tensor.rank,
        "relative_error": tensor.error,
        "energy": tensor.energy,
        "singular_values": None if tensor.rank is None else "exact" if tensor.exact else "sketched",
        "parameters": tensor.parameters,
    }
