"""Values of settings, against the rules of the format written down a second time."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.config.setting import ABSENT, Conditional, SettingError, as_yaml, convert, evaluate, parse

numbers = st.floats(-1e6, 1e6) | st.integers(-1000, 1000) | st.booleans()
positions = st.floats(0, 1)
names = st.sampled_from(["model.layers.1.mlp.up", "model.layers.10.self_attn.q", "lm_head", "model.norm"])
filters = st.sampled_from([None, "*", "mlp", "layers.1", "self_attn", "nowhere", "", "model.*"])
values = numbers | st.lists(numbers, max_size=5)
conditionals = st.lists(st.fixed_dictionaries({"value": values}, optional={"filter": filters}), min_size=1, max_size=4)
settings = values | conditionals | st.fixed_dictionaries({"value": values}, optional={"filter": filters})


def exact_value(setting, name, t):
    """The rules for a float parameter, in exact arithmetic on plain YAML data; None: no value."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return Fraction(setting)
    if not setting:
        return None
    if isinstance(setting[0], dict):
        for entry in setting:
            wanted = entry.get("filter")
            if wanted is None or wanted == "*" or wanted in name:
                return exact_value(entry["value"], name, t)
        return None
    at = Fraction(t) * (len(setting) - 1)
    below = min(math.floor(at), len(setting) - 1)
    above = min(below + 1, len(setting) - 1)
    return Fraction(setting[below]) * (1 - at + below) + Fraction(setting[above]) * (at - below)


@given(settings, names, positions)
def test_numbers(setting, name, t):
    found = evaluate(parse(setting), float, name, t)
    want = exact_value(setting, name, t)
    if want is None:
        assert found is ABSENT
    else:
        assert type(found) is float
        # t·(n-1) is rounded once (n ≤ 5), which moves the value along a step of at most 2e6
        assert abs(Fraction(found) - want) <= Fraction(2e6 * 8 * 2**-53)


@given(st.lists(st.booleans(), min_size=1, max_size=6), positions)
def test_truth_values_are_not_interpolated(gradient, t):
    assert evaluate(parse(gradient), bool, "x", t) is gradient[int(t * (len(gradient) - 1))]


@given(settings)
def test_what_is_parsed_can_be_written_and_parsed_again(setting):
    parsed = parse(setting)
    assert parse(as_yaml(parsed)) == parsed
    assert parse(parsed) == parsed


@pytest.mark.parametrize(
    ("gradient", "over_four_layers"),
    [([True, False], [True, True, True, False]), ([1, 0, 0], [True, True, False, False])],
)
def test_truth_values_over_four_layers(gradient, over_four_layers):
    assert [evaluate(parse(gradient), bool, "x", k / 3) for k in range(4)] == over_four_layers


def test_a_gradient_hits_its_ends_and_knots_exactly():
    gradient = parse([0.1, 0.7, 0.3])
    assert [evaluate(gradient, float, "x", t) for t in (0, 0.5, 1)] == [0.1, 0.7, 0.3]
    assert evaluate(gradient, float, "x", 0.25) == pytest.approx(0.4)
    assert evaluate(parse([0.6]), float, "x", 0.3) == 0.6


def test_whole_numbers_are_converted_after_interpolation():
    gradient = parse([5, "7"])
    assert evaluate(gradient, int, "x", 0.5) == 6
    with pytest.raises(SettingError, match=r"^expected a whole number, found 5\.5$"):
        evaluate(gradient, int, "x", 0.25)
    with pytest.raises(SettingError, match=r"^expected a smaller number in a gradient, found 1000"):
        evaluate(parse([0, 10**400]), int, "x", 0.5)


def test_the_first_conditional_that_matches_counts():
    setting = parse([{"filter": "mlp", "value": 1}, {"filter": "up", "value": []}, {"value": [2, 4]}])
    assert evaluate(setting, float, "mlp.up", 1) == 1
    assert evaluate(setting, float, "attn.q", 1) == 4
    assert evaluate(setting, float, "attn.up", 1) is ABSENT


def test_filters_are_plain_substrings():
    assert Conditional(1, "layers.1").matches("layers.10.mlp")
    assert not Conditional(1, "layers.[0-9]").matches("layers.1.mlp")
    assert not Conditional(1, "mlp*").matches("layers.1.mlp.up")
    assert Conditional(1, "*").matches("anything")
    assert Conditional(1).matches("anything")


@pytest.mark.parametrize(
    ("value", "value_type", "converted"),
    [
        ("1e-5", float, 1e-5), (" 5 ", float, 5.0), (True, float, 1.0), (3, float, 3.0), (-0.0, float, 0.0),
        ("yes", bool, True), ("off", bool, False), ("T", bool, True), ("n", bool, False), (1.0, bool, True),
        (5.0, int, 5), ("3", int, 3), (True, int, 1), ("max", str, "max"),
    ],
)  # fmt: skip
def test_conversion(value, value_type, converted):
    found = convert(value, value_type)
    assert found == converted
    assert type(found) is value_type
    assert math.copysign(1, found) == 1 if value == 0 else True


@pytest.mark.parametrize(
    ("value", "value_type", "message"),
    [
        ("abc", float, "^expected a number, found 'abc'$"),
        ("nan", float, "^expected a finite number, found 'nan'$"),
        (float("inf"), float, "^expected a finite number, found inf$"),
        (10**400, float, "^expected a number, found 1000"),
        (2, bool, "^expected true or false, found 2$"),
        ("maybe", bool, "^expected true or false, found 'maybe'$"),
        (2.5, int, "^expected a whole number, found 2.5$"),
        (True, str, "^expected text, found true$"),
    ],
)
def test_values_of_a_wrong_type(value, value_type, message):
    with pytest.raises(SettingError, match=message):
        convert(value, value_type)


def test_a_number_that_python_cannot_write_down():
    with pytest.raises(SettingError, match=r"^expected a number, found a huge number$"):
        convert(int("f" * 9000, 16), float)


def test_values_of_other_packages_become_plain_ones():
    class Reading(float):
        pass

    assert type(parse(Reading(0.5))) is float
