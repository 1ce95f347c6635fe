"""What a user names on the command line, checked before the work begins."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

from mergecore.errors import ConfigError, RunError

_FORMATS = (".png", ".svg")
"""Of charts."""


def require_known(names: Iterable[str], option: str, known: Collection[str]) -> None:
    """Raise ConfigError for the first of `names` that is not among `known`, with the one that it resembles."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
            raise ConfigError.at(option, f"`{name}` is not known", hint)


def require_folder_of(path: Path, option: str) -> None:
    """Raise ConfigError if there is no folder for the file `path`."""
    if not path.absolute().parent.is_dir():
        raise ConfigError.at(option, f"there is no folder `{path.parent}`", "make it first")


def require_plotting(path: Path) -> None:
    """Raise, before anything is computed, if no chart could be written to `path`."""
    if path.suffix not in _FORMATS:
        raise ConfigError.at("--plot", f"`{path}` is not the name of a chart", f"end it in {' or '.join(_FORMATS)}")
    require_folder_of(path, "--plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RunError.at("--plot", "matplotlib is not installed", "pip install 'mergecore-triton[report]'") from error
