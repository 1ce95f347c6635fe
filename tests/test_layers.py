"""The order of the layers: imports go one way, and what needn't load torch doesn't."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["errors", "checkpoint", "methods", "config", "tokenizer", "plan", "stream", "output"]
"""Of mergecore: each imports only from those before it, and from the kernels."""
ABOVE = [
    "sizes", "torch_device", "in_memory", "adapters", "evaluation", "moe", "planning", "stages", "prediction",
    "verification", "run", "api", "release", "diagnostics", "__init__",
]  # fmt: skip
"""What uses the layers: each imports from those before it, too."""


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("mergecore"), ids=lambda path: str(path.relative_to(ROOT)))
def test_mergecore_imports_only_from_lower_layers(path: Path) -> None:
    here = path.relative_to(ROOT / "mergecore").parts[0].removesuffix(".py")
    order = [*LAYERS, *ABOVE]
    for name in imported(path):
        assert not name.startswith("mergecore_cli"), name
        parts = name.split(".")
        if parts[0] == "mergecore" and len(parts) > 1:
            assert parts[1] in order[: order.index(here) + 1], f"{here} imports {name}"


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_know_nothing_of_mergecore(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] in ("mergecore", "mergecore_cli")]


@pytest.mark.parametrize("path", modules("cli"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_console_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints
    if path.name != "console.py":
        assert "sys.stdout" not in path.read_text(encoding="utf-8")


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running `code`."""
    return {name.partition(".")[0] for name in modules_after(code)}


def modules_after(code: str) -> set[str]:
    report = "import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_neither_torch_nor_the_merging_code() -> None:
    code = "import sys; from mergecore_cli.main import app; app(['--help'], standalone_mode=False)"
    assert not {"torch", "triton", "numpy", "pydantic", "yaml", "mergecore"} & loaded_by(code)


@pytest.mark.parametrize("config", ["quickstart", "tokenizer_union"])
def test_planning_loads_no_torch(config: str) -> None:
    path = ROOT / "configs" / f"{config}.yml"
    not_needed = {"torch", "triton", "transformers", "tokenizers", "huggingface_hub"}
    assert not not_needed & loaded_by(f"import mergecore; mergecore.plan({str(path)!r})")


def test_a_merge_loads_no_torch_into_the_process_that_asks_for_it(tmp_path: Path) -> None:
    config = ROOT / "configs" / "quickstart.yml"
    code = f"import mergecore; mergecore.merge({str(config)!r}, {str(tmp_path / 'out')!r}, workers=1)"
    assert not {"torch", "triton", "transformers", "tokenizers", "jinja2", "huggingface_hub"} & loaded_by(code)


def test_the_package_loads_what_is_used() -> None:
    assert not {"torch", "numpy", "pydantic", "yaml"} & loaded_by("import mergecore; mergecore.start_pool")


def test_a_worker_loads_no_configs() -> None:
    assert not {"yaml", "huggingface_hub", "tokenizers"} & loaded_by("import mergecore.stream.worker")


def test_a_method_is_loaded_without_the_others() -> None:
    found = modules_after("from mergecore import methods; methods.get('slerp')")
    assert "mergecore.methods.slerp" in found
    assert "mergecore.methods.ties" not in found
    assert "mergecore.methods.ties" in modules_after("from mergecore import methods; methods.names()")


def test_a_taken_name_is_refused_though_its_method_is_not_loaded_yet() -> None:
    code = (
        "from mergecore.methods import Params, method\n"
        "options = {'space': 'weights', 'base': 'ignored', 'models': (1, 1), 'paper': ''}\n"
        "method('slerp', params=Params, example=Params(), **options)(lambda p, target: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: the merge method `slerp` is defined twice" in done.stderr


@pytest.mark.parametrize("before", ["mergecore", "mergecore.plan.build", "mergecore.release.push"])
def test_every_name_of_the_package_is_there(before: str) -> None:
    """`plan` is a folder too, and the function is meant."""
    code = (
        f"import {before}, mergecore; found = [getattr(mergecore, name) for name in mergecore.__all__]; "
        "assert all(map(callable, found)); assert mergecore.plan.__name__ == 'plan'"
    )
    assert loaded_by(code)
