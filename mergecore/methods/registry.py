"""The methods that are known, by name."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mergecore.errors import ConfigError
from mergecore.methods.method import Method, Params, Recipe, Survey, Target
from mergecore_kernels.operations import Combine

_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    params: type[Params],
    example: Params,
    paper: str,
    space: Literal["weights", "deltas"],
    base: Literal["required", "optional", "ignored"],
    models: tuple[int, int | None],
    base_counts: bool = True,
    measures: str | None = None,
    missing: Literal["merge", "keep_single", "keep_base", "error"] = "merge",
    random: bool = False,
    whole_rows: bool = False,
    survey: Callable[[Sequence[tuple[Any, Target]]], Survey] | None = None,
    assembles: bool = False,
) -> Callable[[Callable[[Any, Target], Recipe | Combine]], Callable[[Any, Target], Recipe | Combine]]:
    """Register a recipe as the merge method `name`. The arguments are the fields of `Method`."""

    def register(recipe: Callable[[Any, Target], Recipe | Combine]) -> Callable[[Any, Target], Recipe | Combine]:
        if not recipe.__module__.startswith(f"{__package__}."):
            load_all()  # first, as no plug-in may take the name of a method that is there
        if name in _METHODS:
            raise ValueError(f"the merge method `{name}` is defined twice")
        _METHODS[name] = Method(
            name=name,
            recipe=recipe,
            params=params,
            paper=paper,
            space=space,
            base=base,
            models=models,
            base_counts=base_counts,
            measures=measures,
            missing=missing,
            random=random,
            whole_rows=whole_rows,
            survey=survey,
            example=example,
            assembles=assembles,
        )
        return recipe

    return register


@cache
def load_all() -> None:
    """Load all files of this folder, which register their methods."""
    for name in _files():
        import_module(f"{__package__}.{name}")


@cache
def _files() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def forget(module: str) -> None:
    """Take back what a module has registered, so that it can be loaded again."""
    for name in [name for name, found in _METHODS.items() if found.recipe.__module__ == module]:
        del _METHODS[name]


def names() -> list[str]:
    """All methods that a config can choose, sorted."""
    load_all()
    return sorted(name for name, found in _METHODS.items() if not found.assembles)


def get(name: str, where: str = "") -> Method:
    """The method called `name`. Raises ConfigError, with the names there are, if there is none."""
    if name not in _METHODS and name in _files():  # a method's file has its name, as a rule
        import_module(f"{__package__}.{name}")
    if name not in _METHODS:
        load_all()
    found = _METHODS.get(name)
    if found is None:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"the methods are: {', '.join(names())}"
        raise ConfigError.at(where, f"`{name}` is not a merge method", hint)
    return found
