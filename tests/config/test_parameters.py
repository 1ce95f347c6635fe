"""Which setting counts: precedence, scopes, and what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore import methods
from mergecore.config import ModelLevel, resolve
from mergecore.config.setting import parse
from mergecore.errors import ConfigError

TIES = methods.get("ties")
LINEAR = methods.get("linear")


def level(own=None, *, tensor="layers.3.mlp", base=False, label="a"):
    return ModelLevel({name: parse(value) for name, value in (own or {}).items()}, tensor, base, label)


def resolved(method, shared, *models, t=0.0, target="layers.0.mlp", where=""):
    shared = [{name: parse(value) for name, value in one.items()} for one in shared]
    return resolve(method, shared_levels=shared, per_model=models, target_name=target, t=t, where=where)


conditionals = st.builds(
    lambda part, value: {"filter": part, "value": value},
    st.sampled_from(["mlp", "attn", "layers.3"]),
    st.sampled_from([3, []]),
)
weights = st.none() | st.sampled_from([0, 0.5, 1, [], [1, 2]]) | conditionals


def first_value(settings, tensor):
    """The rules for a number at t = 0 once more; None: no value at any level."""
    for setting in settings:
        if isinstance(setting, dict):
            setting = setting["value"] if setting["filter"] in tensor else None
        if isinstance(setting, list):
            setting = setting[0] if setting else None
        if setting is not None:
            return setting
    return None


@given(own=weights, in_slice=weights, top=weights, base_weight=weights)
def test_precedence(own, in_slice, top, base_weight):
    def named(weight):
        return {} if weight is None else {"weight": weight}

    want = first_value([own, in_slice, top], "layers.3.mlp")
    models = (level(named(own)), level(named(base_weight), base=True, label="the base"))
    if want is None:
        with pytest.raises(ConfigError, match=r"^`weight` of a is missing: it has no value at layers\.3\.mlp"):
            resolved(TIES, [named(in_slice), named(top)], *models)
    else:
        assert resolved(TIES, [named(in_slice), named(top)], *models).weight == (want,)


def test_shared_parameters_are_not_looked_up_in_models():
    p = resolved(TIES, [{"lambda": 2}], level({"weight": 1, "lambda": 3, "normalize": False}))
    assert (p.lambda_, p.normalize) == (2.0, True)


def test_shared_parameters_see_the_output_tensor_and_others_that_of_the_model():
    by_layer = [{"filter": "layers.0", "value": 0}, {"filter": "layers.3", "value": 3}]
    p = resolved(TIES, [{"lambda": by_layer, "weight": by_layer, "density": by_layer}], level())
    assert (p.lambda_, p.weight, p.density) == (0.0, (3.0,), (3.0,))


def test_a_value_for_each_input_or_for_each_but_the_base():
    models = (level({"weight": 1}), level({"weight": 2}, base=True), level({"weight": 3}))
    assert resolved(LINEAR, [], *models).weight == (1.0, 2.0, 3.0)
    assert resolved(TIES, [], *models).weight == (1.0, 3.0)
    assert resolved(TIES, [], *models).density == (1.0, 1.0)


def test_settings_of_the_base_that_cannot_count_are_not_even_looked_at():
    assert resolved(TIES, [], level({"weight": "abc"}, base=True), level({"weight": 1})).weight == (1.0,)


def test_only_the_base():
    assert resolved(TIES, [], level(base=True)).weight == ()


def test_defaults_that_are_none():
    assert resolved(methods.get("passthrough"), [], level()).scale == (None,)


def test_gradients_follow_the_position():
    model = level({"weight": [0, 1]})
    assert [resolved(LINEAR, [], model, t=t).weight for t in (0, 0.25, 1)] == [(0.0,), (0.25,), (1.0,)]


def test_equal_parameters_are_one_object():
    assert resolved(LINEAR, [{"weight": 1}], level()) is resolved(LINEAR, [{"weight": "1.0"}], level(), target="other")


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError) as caught:
        resolved(LINEAR, [{}], level({"weight": 1}), level(base=True, label="b (the base)"), where="merge.yml:4")
    assert str(caught.value) == (
        "merge.yml:4: `weight` of b (the base) is missing: it has no value at layers.3.mlp, and no default "
        "(hint: `weight` is one value per model: set it under `parameters` of each, or at the top level for all)"
    )
    with pytest.raises(ConfigError) as caught:
        resolved(methods.get("slerp"), [{"t": {"filter": "attn", "value": 1}}], level())
    assert str(caught.value) == (
        "`t` is missing: it has no value at layers.0.mlp, and no default "
        "(hint: `t` is one value: set it under `parameters` at the top level or in a slice)"
    )


def test_a_wrong_value_is_named():
    with pytest.raises(ConfigError, match=r"^`weight` of a at layers\.3\.mlp: expected a number, found 'x'$"):
        resolved(LINEAR, [{"weight": "x"}], level())


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        resolved(TIES, [{"lambda": "x"}], level({"density": "y"}))
    assert [p.what.split(" ")[0] for p in caught.value.problems] == ["`weight`", "`lambda`", "`density`"]


def test_rules_of_the_method_itself_are_kept(method_with_a_rule):
    with pytest.raises(
        ConfigError, match=r"^merge.yml: `share` at layers\.0\.mlp: Input should be less than or equal to 1$"
    ):
        resolved(method_with_a_rule, [{"share": 2}], level(), where="merge.yml")


@pytest.fixture
def method_with_a_rule(whole_number_method):
    from dataclasses import replace

    from pydantic import Field

    class WithRule(methods.Params):
        share: float = Field(default=0.5, le=1)

    return replace(methods.get(whole_number_method), params=WithRule)
