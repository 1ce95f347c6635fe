"""What single methods promise, told by the recipes alone: no tensor, no device."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore import PlanError, methods
from mergecore.methods import Target
from mergecore_kernels.operations import (
    Consensus,
    Copy,
    Drop,
    Gram,
    KthMagnitudes,
    MagnitudeSums,
    Trim,
    WeightedSum,
)


def target(m: int = 2, n: int = 100, base: int | None = None, seed: int = 0) -> Target:
    return Target(name="a.weight", n=n, models=tuple(range(m)), base=base, seed=seed)


def run(method: str, values: dict[str, Any], to: Target, *answers: Any) -> tuple[list[Any], Any]:
    """The questions that a recipe asks, and its combination."""
    found = methods.get(method)
    recipe = found.recipe(found.params(**values), to)
    if not hasattr(recipe, "send"):
        return [], recipe
    questions = []
    try:
        questions.append(next(recipe))
        for answer in answers:
            questions.append(recipe.send(answer))
    except StopIteration as end:
        return questions, end.value
    raise AssertionError(f"asks for more: {questions[-1]}")


def slerp(dots: list[list[float]], t: float, base: int | None = None) -> tuple[float, ...]:
    questions, combine = run("slerp", {"t": t}, target(base=base), dots)
    assert questions == [Gram()]
    return combine.weights


def gram(a: float, b: float, cosine: float) -> list[list[float]]:
    """Of two vectors by their lengths and the cosine between them."""
    return [[a * a, a * b * cosine], [a * b * cosine, b * b]]


class TestSlerp:
    @given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-0.999, 0.999), st.sampled_from([0, 1]))
    def test_ends_of_the_arc(self, a: float, b: float, cosine: float, base: int) -> None:
        dots = gram(a, b, cosine)
        at_base, at_other = (1.0, 0.0), (0.0, 1.0)
        if base:
            at_base, at_other = at_other, at_base
        assert slerp(dots, 0.0, base) == pytest.approx(at_base, abs=1e-12)
        assert slerp(dots, 1.0, base) == pytest.approx(at_other, abs=1e-12)

    @given(st.floats(-0.99, 0.99), st.floats(0, 1))
    def test_stays_on_the_sphere(self, cosine: float, t: float) -> None:
        u, v = slerp(gram(1, 1, cosine), t)
        assert u * u + v * v + 2 * u * v * cosine == pytest.approx(1.0, abs=1e-9)

    def test_nearly_parallel_is_linear(self) -> None:
        assert slerp(gram(2, 3, 0.9996), 0.3) == (0.7, 0.3)

    def test_antiparallel_is_linear(self) -> None:
        assert slerp(gram(2, 3, -1), 0.5) == (0.5, 0.5)

    def test_zero_counts_as_perpendicular(self) -> None:
        quarter = math.sin(0.25 * math.pi / 2)
        assert slerp(gram(0, 3, 0), 0.25)[1] == pytest.approx(quarter, abs=1e-15)

    def test_rounding_may_push_the_cosine_beyond_one(self) -> None:
        assert slerp([[1.0, -1.0000001], [-1.0000001, 1.0]], 0.5) == (0.5, 0.5)


class TestLinear:
    def test_weights_are_divided_by_their_sum(self) -> None:
        assert run("linear", {"weight": (3.0, 1.0)}, target())[1] == WeightedSum((0.75, 0.25))

    def test_not_normalized(self) -> None:
        assert run("linear", {"weight": (3.0, 1.0), "normalize": False}, target())[1] == WeightedSum((3.0, 1.0))

    def test_weights_that_cancel(self) -> None:
        with pytest.raises(PlanError, match="a.weight: the weights 1, -1 add up to 0, so they can't be normalized"):
            run("linear", {"weight": (1.0, -1.0)}, target())


class TestPassthrough:
    def test_copies(self) -> None:
        assert run("passthrough", {"scale": (None,)}, target(1))[1] == Copy()

    def test_scales(self) -> None:
        assert run("passthrough", {"scale": (0.5,)}, target(1))[1] == WeightedSum((0.5,))


class TestTaskArithmetic:
    def test_lambda_and_division_are_taken_in(self) -> None:
        values = {"weight": (1.0, 3.0), "lambda": 2.0, "normalize": True}
        assert run("task_arithmetic", values, target())[1] == WeightedSum((0.5, 1.5))

    def test_weights_that_cancel_are_not_divided(self) -> None:
        values = {"weight": (1.0, -1.0), "normalize": True}
        assert run("task_arithmetic", values, target())[1] == WeightedSum((1.0, -1.0))


class TestTies:
    @pytest.mark.parametrize(
        ("density", "n", "kept"),
        [(0.29, 100, 28), (0.5, 7, 3), (0.05, 16, 1), (0.0, 16, 0), (-1.0, 16, 0), (2.0, 9, 9)],
    )
    def test_how_many_are_kept(self, density: float, n: int, kept: int) -> None:
        values = {"weight": (1.0, 1.0), "density": (density, 0.5)}
        questions, _ = run("ties", values, target(n=n), (None, None))
        assert questions[0].kept[0] == kept

    def test_nothing_is_measured_where_all_is_kept(self) -> None:
        questions, combine = run("ties", {"weight": (1.0, 1.0), "density": (1.0, 1.0)}, target())
        assert questions == []
        assert combine == Consensus((1.0, 1.0), (None, None), (1.0, 1.0), elect=True, normalize=True, scale=1.0)

    def test_choice_among_equals_is_the_same_for_every_seed(self) -> None:
        values = {"weight": (1.0,), "density": (0.5,)}
        one, two = (run("ties", values, target(1, seed=seed), (None,))[0] for seed in (1, 2))
        assert one == two
        assert isinstance(one[0], KthMagnitudes)

    def test_rescale_measures_what_the_trim_took(self) -> None:
        trim = Trim(0.5, 0, target(1).fixed_keys("trim")[0])
        values = {"weight": (2.0,), "density": (0.5,), "rescale": True}
        questions, combine = run("ties", values, target(1), (trim,), [(6.0, 4.0)])
        assert questions[1] == MagnitudeSums((trim,))
        assert combine.rescales == (1.5,)


class TestDare:
    @pytest.mark.parametrize(("method", "elect"), [("dare_linear", False), ("dare_ties", True)])
    def test_drop_and_rescale(self, method: str, elect: bool) -> None:
        values = {"weight": (1.0, 1.0), "density": (0.25, 1.0)}
        questions, combine = run(method, values, target(seed=9), [(8.0, 2.0), (5.0, 5.0)])
        key = target(seed=9).random_keys("drop")[0]
        assert combine.masks == (Drop(1 << 30, key), None)
        assert questions == [MagnitudeSums(combine.masks)]
        assert combine.rescales == (4.0, 1.0)
        assert combine.elect is elect
        assert not combine.normalize

    @pytest.mark.parametrize("sums", [(0.0, 0.0), (1e-8, 1e-8), (1.0, 0.0)])
    def test_nothing_to_rescale(self, sums: tuple[float, float]) -> None:
        _, combine = run("dare_ties", {"weight": (1.0,), "density": (0.5,)}, target(1), [sums])
        assert combine.rescales == (1.0,)

    def test_without_rescale_nothing_is_measured(self) -> None:
        values = {"weight": (1.0,), "density": (0.5,), "rescale": False}
        assert run("dare_linear", values, target(1))[0] == []

    def test_streams_differ_between_seeds_tensors_and_models(self) -> None:
        keys = [
            *target(2, seed=1).random_keys("drop"),
            *target(2, seed=2).random_keys("drop"),
            *Target("b.weight", 1, (0, 1), None, 1).random_keys("drop"),
            *target(2, seed=1).random_keys("other"),
        ]
        words = [key.words(block) for key in keys for block in (0, 1)]
        assert len(set(words)) == len(words)
