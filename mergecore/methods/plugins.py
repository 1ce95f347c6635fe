"""Merge methods that are no part of mergecore: in files that a user names, and in packages that are installed.

A plug-in registers its methods with the decorator `mergecore.methods.method`, as the files of this folder do. A package
names the module that does so under the entry point group `mergecore.methods`.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from mergecore.errors import ConfigError, MergeError
from mergecore.methods import registry
from mergecore.methods.method import Method

GROUP = "mergecore.methods"
_loaded: dict[Path, bytes] = {}
"""The files that are loaded, as they were then."""


def load(files: Iterable[str | Path] = ()) -> None:
    """Make the methods of all installed plug-ins and of `files` known. A file that has changed is loaded again.

    Raises ConfigError, with the line, for a plug-in that can't be loaded or takes a name that is taken.
    """
    for entry in _installed():
        _load_installed(entry)
    for file in files:
        _load_file(Path(file).absolute())


def loaded_files() -> tuple[Path, ...]:
    """The plug-ins that other processes must load to know the methods that this one knows."""
    return tuple(_loaded)


def loaded_hashes() -> dict[str, str]:
    """The same files, each with a hash of what it says."""
    return {str(path): hashlib.sha256(source).hexdigest() for path, source in _loaded.items()}


@contextmanager
def blamed(method: Method, tensor: str, kind: type[MergeError]) -> Iterator[None]:
    """Tell what goes wrong in a plug-in's code as an error of that plug-in, at the tensor that was merged."""
    try:
        yield
    except MergeError:
        raise
    except Exception as error:
        module = method.recipe.__module__
        if module.partition(".")[0] == "mergecore":
            raise
        path = Path(sys.modules[module].__file__ or module)
        raise kind.at(
            _place(error, path), f"`{method.name}` failed at the tensor `{tensor}`: {_told(error)}"
        ) from error


@cache
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _load_installed(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:
        package = f" of the package {entry.dist.name}" if entry.dist else ""
        raise ConfigError.at(
            entry.value,
            f"the plug-in `{entry.name}`{package} can't be loaded: {_told(error)}",
            "update or uninstall it",
        ) from error


def _load_file(path: Path) -> None:
    source = _read(path)
    if _loaded.get(path) == source:
        return
    # The path is part of the name, so that files of one name don't take each other's place.
    name = f"mergecore_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    registry.forget(name)
    before = registry.names()
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        _run(source, path, module)
    except ConfigError:
        registry.forget(name)
        raise
    if registry.names() == before:
        raise ConfigError.at(path, "registers no merge method", "decorate a recipe with `mergecore.methods.method`")
    _loaded[path] = source


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError.at(path, "there is no such plug-in", "expected a Python file") from None
    except OSError as error:
        raise ConfigError.at(path, f"can't be read: {error.strerror}", "expected a Python file") from None


def _run(source: bytes, path: Path, module: ModuleType) -> None:
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.filename == str(path) and error.lineno else path
        raise ConfigError.at(where, f"not valid Python: {error.msg}") from error
    except Exception as error:
        raise ConfigError.at(_place(error, path), f"the plug-in can't be loaded: {_told(error)}") from error


def _place(error: Exception, path: Path) -> str:
    """`plugin.py:LINE`: the innermost line of the plug-in that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f"{path}:{line}" if line else str(path)


def _told(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
