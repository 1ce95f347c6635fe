"""DELLA: which elements are kept, how many, and what they are multiplied by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergecore import methods
from mergecore.methods import Target
from mergecore_kernels.operations import Consensus, Drop, MagnitudeSums, RankedDrop
from mergecore_kernels.torch_ops import Tile, Workspace, combine, measure

COLUMNS = 100


def solved(method: str, values: dict[str, Any], *answers: Any, m: int = 2) -> tuple[list[Any], Consensus]:
    """The questions that a recipe asks, and its combination."""
    found = methods.get(method)
    recipe: Any = found.recipe(found.params(**values), target(m))
    questions = []
    try:
        questions.append(next(recipe))
        for answer in answers:
            questions.append(recipe.send(answer))
    except StopIteration as end:
        return questions, end.value
    raise AssertionError(f"asks for more: {questions[-1]}")


def target(m: int = 2, n: int = 1000) -> Target:
    return Target("a.weight", n, tuple(range(m)), None, seed=9, shape=(n // COLUMNS, COLUMNS))


@pytest.mark.parametrize(("method", "elect"), [("della", True), ("della_linear", False)])
def test_drop_and_rescale(method: str, elect: bool) -> None:
    values = {"weight": (1.0, 1.0), "density": (0.5, 1.0), "epsilon": (0.2, 0.15)}
    questions, combination = solved(method, values, [(8.0, 2.0), (5.0, 5.0)])
    assert combination.masks == (RankedDrop(0.5, 0.2, COLUMNS, target().random_keys("drop")[0]), None)
    assert questions == [MagnitudeSums(combination.masks)]
    assert combination.rescales == (4.0, 1.0)
    assert combination.elect is combination.normalize is elect


@pytest.mark.parametrize(
    ("density", "epsilon", "used"),
    [(0.9, 0.15, 0.1), (0.1, 0.15, 0.1), (0.5, 0.15, 0.15), (0.5, 0.9, 0.5), (0.9, -0.5, -0.1)],
)
def test_probabilities_stay_between_0_and_1(density: float, epsilon: float, used: float) -> None:
    values = {"weight": (1.0,), "density": (density,), "epsilon": (epsilon,), "rescale": False}
    questions, combination = solved("della", values, m=1)
    (mask,) = combination.masks
    assert isinstance(mask, RankedDrop)
    assert (mask.density, mask.epsilon) == (density, pytest.approx(used))
    assert questions == []


def test_nothing_and_all() -> None:
    values = {"weight": (1.0, 1.0), "density": (-0.5, 2.0), "epsilon": (0.15, 0.15), "rescale": False}
    assert solved("della", values)[1].masks == (Drop(0, target().random_keys("drop")[0]), None)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_whole_rows_are_needed(method: str) -> None:
    assert methods.get(method).whole_rows
    assert methods.get(method).random


def test_density_and_sum_of_magnitudes_are_met() -> None:
    n = 1000 * COLUMNS
    generator = torch.Generator().manual_seed(0)
    base, delta = torch.randn(2, n, generator=generator)
    found = methods.get("della_linear")
    recipe: Any = found.recipe(found.params(weight=(1.0,), density=(0.6,), epsilon=(0.3,)), target(1, n=n))
    tile, workspace = Tile(0, [base + delta], base, torch.float32), Workspace("cpu", 64 << 20)
    with pytest.raises(StopIteration) as end:
        recipe.send(measure(next(recipe), [tile], workspace))
    out = torch.empty(n)
    combine(end.value.value, tile, out, workspace)
    kept = (out - base).abs() > 0
    # Six standard deviations of a binomial count; a tenth of each row has chances between .84 and .9.
    assert kept.float().mean().item() == pytest.approx(0.6, abs=6 * 0.5 / n**0.5)
    largest = delta.abs().view(-1, COLUMNS).argsort(1)[:, 90:]
    assert kept.view(-1, COLUMNS).gather(1, largest).float().mean().item() == pytest.approx(0.873, abs=0.02)
    assert (out - base).abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-4)
