"""Methods that are no part of mergecore: how they are loaded, run, and blamed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergecore import ConfigError, MergeError, PlanError, RunError, merge, methods, plan
from mergecore.methods import plugins, registry

ROOT = Path(__file__).parents[2]
MEDIAN = '''\
import torch
from mergecore.methods import Params, PerTask, method
from mergecore_kernels.operations import TileFunction

class MedianParams(Params):
    weight: PerTask[float] = 1.0
    """Factor on this model's delta."""

@method("median", params=MedianParams, example=MedianParams(weight=(1, 1)), paper="No paper", space="deltas",
        base="required", models=(1, None))
def median(p, target):
    """The base plus the median of the weighted deltas, element by element."""
    def combine(inputs, base):
        return base + torch.stack([w * (x - base) for w, x in zip(p.weight, inputs)]).median(dim=0).values
    return TileFunction(combine)
'''
SUM = '''\
from mergecore.methods import Params, method
from mergecore_kernels.operations import Gram, TileFunction, WeightedSum

@method("mine", params=Params, example=Params(), paper="No paper", space="weights", base="ignored", models=(1, None))
def mine(p, target):
    """{doc}"""
    {body}
'''


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    registry.load_all()  # or those that are loaded meanwhile would be forgotten
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(plugins, "_loaded", {})
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("mergecore_plugin_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., Path]:
    """plugin(text, name="plugin.py") -> a file in tmp_path."""

    def write(text: str, name: str = "plugin.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def body(text: str) -> str:
    return SUM.format(doc="Mine.", body=text)


def source(method: str, *models: Path, **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "models": [{"model": str(model)} for model in models], **more}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_function_of_tiles_is_a_method(make_model, plugin, tmp_path: Path, workers: int) -> None:
    base, a, b, c = (make_model(name, seed=seed) for seed, name in enumerate(("base", "a", "b", "c")))
    config = source("median", a, b, c, base_model=str(base), parameters={"weight": 0.5})
    merge(config, tmp_path / "out", workers=workers, plugins=[plugin(MEDIAN)])
    merged = load_file(tmp_path / "out" / "model.safetensors")
    x, *others = (load_file(folder / "model.safetensors") for folder in (base, a, b, c))
    for name, tensor in merged.items():
        deltas = torch.stack([0.5 * (other[name] - x[name]) for other in others])
        assert torch.equal(tensor, x[name] + deltas.median(dim=0).values)


def test_the_example_in_the_readme(make_model, plugin, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = readme.partition("Say this is `median.py`:\n\n```python\n")[2].partition("```")[0]
    config = source("median", make_model("a"), make_model("b"), base_model=str(make_model("base")))
    merge(config, tmp_path / "out", workers=0, plugins=[plugin(text)])
    merged, a = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a"))
    assert all(torch.allclose(merged[name], a[name]) for name in a)  # all three models are the same


def test_a_function_may_change_what_it_is_given(make_model, plugin, tmp_path: Path) -> None:
    text = body("return TileFunction(lambda inputs, base: inputs[0].mul_(2))")
    merge(source("mine", make_model("a")), tmp_path / "out", workers=0, plugins=[plugin(text)])
    doubled, a = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a"))
    assert all(torch.equal(doubled[name], 2 * a[name]) for name in a)


def test_a_recipe_of_operations_is_a_method(make_model, plugin, tmp_path: Path) -> None:
    text = body("dots = yield Gram()\n    return WeightedSum((2.0, 0.0 * dots[0][0]))")
    models = make_model("a"), make_model("b", seed=1)
    merge(source("mine", *models), tmp_path / "out", workers=0, plugins=[plugin(text)])
    doubled, a = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a"))
    assert all(torch.equal(doubled[name], 2 * a[name]) for name in a)


def test_a_file_that_has_changed_is_loaded_again(plugin) -> None:
    path = plugin(SUM.format(doc="First.", body="return WeightedSum((1.0,))"))
    plugins.load([path])
    plugins.load([path])
    assert methods.get("mine").doc == "First."
    plugin(SUM.format(doc="Second.", body="return WeightedSum((1.0,))"))
    plugins.load([path])
    assert methods.get("mine").doc == "Second."


def test_files_of_one_name_are_two_plugins(plugin) -> None:
    one, other = plugin(body("return None")), plugin(MEDIAN, "other/plugin.py")
    plugins.load([one, other])
    assert methods.get("mine").recipe.__module__ != methods.get("median").recipe.__module__
    assert plugins.loaded_files() == (one, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"^{path}:1: not valid Python: '\(' was never closed$"),
        ("\nimport no_such_module\n", r"^{path}:2: the plug-in can't be loaded: ModuleNotFoundError: No module named"),
        ("x = 1\n", r"^{path}: registers no merge method \(hint: decorate a recipe with `mergecore.methods.method`\)$"),
        (
            MEDIAN.replace('"median"', '"linear"'),
            r"^{path}:9: the plug-in can't be loaded: ValueError: the merge method `linear` is defined twice$",
        ),
    ],
)
def test_plugins_that_cannot_be_loaded(plugin, text: str, message: str) -> None:
    path = plugin(text)
    before = methods.names()
    with pytest.raises(ConfigError, match=message.format(path=path)):
        plugins.load([path])
    assert methods.names() == before
    assert plugins.loaded_files() == ()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.py: there is no such plug-in .hint: expected a Python file"):
        plan({}, plugins=[tmp_path / "nowhere.py"])
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        plugins.load([tmp_path])


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "return 1 / 0",
            PlanError,
            r"plugin\.py:7: `mine` failed at the tensor `model\.embed_tokens\.weight`: ZeroDiv",
        ),
        (
            "dots = yield Gram()\n    return undefined",
            RunError,
            r"plugin\.py:8: `mine` failed at the tensor `.*`: NameError: name 'undefined' is not defined",
        ),
        (
            "return 5",
            RunError,
            r"plugin\.py: `mine` failed at the tensor `.*`: TypeError: expected a combination of "
            r"mergecore_kernels\.operations, found 5",
        ),
        (
            "yield 5",
            RunError,
            r"TypeError: expected a measurement of mergecore_kernels\.operations, found 5",
        ),
        (
            "return TileFunction(lambda inputs, base: inputs[0][:-1])",
            RunError,
            r"`mine` failed at the tensor `.*`: TypeError: expected a floating point tensor of shape \[\d+\] on cpu, "
            r"found one of shape \[\d+\], torch\.float32, on cpu",
        ),
        (
            "return TileFunction(lambda inputs, base: inputs[0] > 0)",
            RunError,
            r"found one of shape \[\d+\], torch\.bool, on cpu",
        ),
        (
            "return TileFunction(lambda inputs, base: None)",
            RunError,
            r"TypeError: expected a tensor of shape \[\d+\], found None",
        ),
        (
            "return TileFunction(lambda inputs, base: inputs[7])",
            RunError,
            r"plugin\.py:7: `mine` failed at the tensor `.*`: IndexError: list index out of range",
        ),
    ],
)
def test_what_goes_wrong_in_a_plugin_is_told_with_its_line(
    make_model, plugin, tmp_path: Path, text: str, kind: type[MergeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        merge(source("mine", make_model("a")), tmp_path / "out", workers=0, plugins=[plugin(body(text))])
    assert not (tmp_path / "out").exists()


def test_errors_of_a_plugin_come_back_from_workers(make_model, plugin, tmp_path: Path) -> None:
    text = body("return TileFunction(lambda inputs, base: inputs[7])")
    with pytest.raises(RunError, match=r"plugin\.py:7: `mine` failed at the tensor"):
        merge(source("mine", make_model("a")), tmp_path / "out", workers=1, plugins=[plugin(text)])


def test_installed_plugins_are_known(plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(MEDIAN, "installed_plugin.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_installed", lambda: (EntryPoint("median", "installed_plugin", plugins.GROUP),))
    plugins.load()
    plugins.load()
    assert "median" in methods.names()
    monkeypatch.setattr(plugins, "_installed", lambda: (EntryPoint("mine", "no_such_module", plugins.GROUP),))
    with pytest.raises(ConfigError, match="^no_such_module: the plug-in `mine` can't be loaded: ModuleNotFoundError"):
        plugins.load()


def test_entry_points_of_installed_packages_are_found(plugin, tmp_path: Path) -> None:
    plugin(body("return WeightedSum((1.0,))"), "installed_plugin.py")
    plugin("Metadata-Version: 2.1\nName: my-methods\nVersion: 1\n", "my_methods-1.dist-info/METADATA")
    plugin("[mergecore.methods]\nmine = installed_plugin\n", "my_methods-1.dist-info/entry_points.txt")
    code = "from mergecore.methods import names, plugins; plugins.load(); print('mine' in names())"
    done = run_python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_file_in_the_folder_of_methods_is_a_method(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mergecore", tmp_path / "mergecore", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mergecore" / "methods" / "mine.py").write_text(body("return WeightedSum((1.0,))"), encoding="utf-8")
    done = run_python("from mergecore.methods import get; print(get('mine').doc)", tmp_path)
    assert (done.stdout, done.stderr) == ("Mine.\n", "")


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` where modules of `folder` are found first."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(ROOT / "kernels")])}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, cwd=folder
    )
