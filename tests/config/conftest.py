from collections.abc import Callable
from pathlib import Path

import pytest

from mergecore.config import Config, load
from mergecore.errors import ConfigError
from mergecore.methods import Params, PerInput, Target, method, registry
from mergecore_kernels.operations import Combine, Copy


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Load this text from a file that the user calls `merge.yml`."""
    monkeypatch.chdir(tmp_path)

    def read(text: str, *, strict: bool = False) -> Config:
        Path("merge.yml").write_text(text, encoding="utf-8")
        return load("merge.yml", strict=strict)

    return read


@pytest.fixture
def complaints(read: Callable[..., Config]) -> Callable[..., list[str]]:
    """The lines of the ConfigError that loading this text ends in."""

    def complaints(text: str, *, strict: bool = False) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, strict=strict)
        return str(caught.value).splitlines()

    return complaints


@pytest.fixture
def whole_number_method(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a merge method that has a parameter `max_iter: int`."""
    name = "example_of_whole_numbers"
    registry.load_all()  # or those that are loaded meanwhile would be forgotten
    monkeypatch.setattr("mergecore.methods.registry._METHODS", dict(registry._METHODS))

    class ExampleParams(Params):
        max_iter: int = 10
        scale: PerInput[float | None] = None  # type: ignore[assignment]

    @method(
        name,
        params=ExampleParams,
        example=ExampleParams(scale=(None,)),
        paper="none",
        space="weights",
        base="ignored",
        models=(1, None),
    )
    def recipe(p: ExampleParams, target: Target) -> Combine:
        return Copy()

    return name
