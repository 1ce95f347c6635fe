"""`mergecore methods`: what merge methods there are, and what each does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Plugins

if TYPE_CHECKING:
    from mergecore.methods import Method, Parameter


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.", metavar="[NAME]")] = None,
    plugin: Plugins = None,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """List the merge methods, or explain one."""
    from mergecore import methods
    from mergecore.methods import plugins

    plugins.load(plugin or ())
    if json:
        facts = [_facts(methods.get(n)) for n in ([name] if name else methods.names())]
        console.data_json(facts[0] if name else facts)
    elif name:
        _explain(methods.get(name))
    else:
        _list([methods.get(n) for n in methods.names()])


def _list(found: list[Method]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("method", "models", "what it does"):
        table.add_column(column)
    for method in found:
        table.add_row(method.name, _count(method), " ".join(method.doc.split("\n\n")[0].split()))
    console.data(table)


def _explain(method: Method) -> None:
    from rich.markup import escape
    from rich.table import Table

    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in method.doc.split("\n\n"))
    console.data(f"[bold]{method.name}[/bold]\n\n{escape(text)}\n")
    if method.assembles:
        console.data("Its config has `experts` in the place of models: `mergecore moe` takes it.")
        return
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("paper", escape(method.paper))
    facts.add_row("models", _count(method))
    facts.add_row("base model", method.base)
    facts.add_row("measures", method.measures or "nothing: the inputs are read once")
    console.data(facts)
    table = Table(box=None, pad_edge=False)
    for column in ("parameter", "type", "scope", "default", "meaning"):
        table.add_column(column)
    for p in method.parameters:
        table.add_row(p.name, p.type.__name__, p.scope.value, _default(p), escape(" ".join(p.doc.split())))
    console.data("")
    console.data(table if method.parameters else "It has no parameters.")


def _facts(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "doc": method.doc,
        "paper": method.paper,
        "models": {"fewest": method.models[0], "most": method.models[1]},
        "base": method.base,
        "base_counts": method.base_counts,
        "measures": method.measures,
        "random": method.random,
        "parameters": [
            {"name": p.name, "type": p.type.__name__, "scope": p.scope.value, "required": p.required,
             "default": p.default, "doc": p.doc}
            for p in method.parameters
        ],
    }  # fmt: skip


def _count(method: Method) -> str:
    fewest, most = method.models
    count = f"{fewest}" if most == fewest else f"{fewest} or more" if most is None else f"{fewest} to {most}"
    return count if method.base_counts else f"{count} beside a base"


def _default(p: Parameter) -> str:
    return "required" if p.required else "none" if p.default is None else str(p.default).lower()
