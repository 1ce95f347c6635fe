"""The registry: a file in the folder is a method, and every method says what it must."""

from __future__ import annotations

import pytest

from mergecore import ConfigError, methods
from mergecore.methods import Scope


@pytest.mark.parametrize("name", methods.names())
def test_every_method_explains_itself(name: str) -> None:
    found = methods.get(name)
    assert found.doc
    assert "http" in found.paper or "No paper" in found.paper
    assert all(p.doc for p in found.parameters)
    assert isinstance(found.example, found.params)


def test_names_are_sorted() -> None:
    assert methods.names() == sorted(methods.names())


def test_unknown_methods_get_a_hint() -> None:
    with pytest.raises(ConfigError, match="`tiess` is not a merge method .hint: did you mean `ties`"):
        methods.get("tiess")
    with pytest.raises(ConfigError, match="hint: the methods are: .*dare_linear, dare_ties, "):
        methods.get("zzz")


def test_a_name_can_be_taken_only_once() -> None:
    linear = methods.get("linear")
    register = methods.method("linear", params=linear.params, example=linear.example, paper="-", space="weights",
                              base="ignored", models=(1, None))  # fmt: skip
    with pytest.raises(ValueError, match="`linear` is defined twice"):
        register(linear.recipe)


def test_parameters_are_read_off_the_class() -> None:
    found = {p.name: p for p in methods.get("ties").parameters}
    assert found["weight"].required
    assert found["weight"].scope is Scope.TASK
    assert found["density"].default == 1.0
    assert found["lambda"].type is float
    assert found["lambda"].scope is Scope.SHARED
    assert found["normalize"].type is bool
    assert methods.get("passthrough").parameters[0].type is float
