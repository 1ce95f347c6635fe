"""Whatever a YAML says, loading it ends in a Config or in one clear error; and what is loaded survives a round trip."""

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergecore.config import Config, load
from mergecore.errors import ConfigError

KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype", "tokenizer",
    "experts", "model", "sources", "layer_range", "weight", "density", "normalize", "t", "value", "filter", "path",
    "revision", "lora", "override_architecture", "dtyp", "wieght", "foo", "name", "tokenizer_source", "chat_template",
    "source", "tokens", "pad_to_multiple_of", "force", "kind", "token", "token_id",
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["linear", "ties", "a", "org/a@main", "a+b", "bfloat16", "bf16", "0.5", ""]),
    st.text(max_size=5),
    st.dates(),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.integers(0, 3) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=15,
)


def loaded_or_refused(source, **options):
    try:
        return load(source, **options)
    except ConfigError as error:
        problems = error.problems
    assert problems
    assert all(problem.where and problem.what and "\n" not in str(problem) for problem in problems)
    return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=anything)
def test_any_yaml(tmp_path, raw):
    path = tmp_path / "any.yml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    loaded_or_refused(path)


@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=5))
def test_any_mapping(raw):
    loaded_or_refused(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30) | st.text(alphabet="ab:-[]{}&*<!\"'|>%#,\n \t?", max_size=40))
def test_any_text(tmp_path, text):
    path = tmp_path / "any.yml"
    path.write_text(text, encoding="utf-8", errors="replace")
    loaded_or_refused(path)


numbers = st.floats(-10, 10) | st.integers(-5, 5)
values = numbers | st.lists(numbers, max_size=3)
conditionals = st.lists(st.fixed_dictionaries({"value": values}, optional={"filter": st.text(max_size=4)}), max_size=3)
parameters = st.fixed_dictionaries(
    {}, optional={"weight": values | conditionals, "density": values, "normalize": st.booleans()}
)
references = st.sampled_from(["a", "org/b@main", "a+c@x", "x@y@z"]) | st.fixed_dictionaries(
    {"model": st.sampled_from(["a", "b@r"]) | st.fixed_dictionaries({"path": st.sampled_from(["a+b", "c@d"])})},
    optional={"lora": st.sampled_from([None, "l@m"]), "override_architecture": st.just("LlamaForCausalLM")},
)
entries = st.fixed_dictionaries({"model": references}, optional={"parameters": parameters})
sources = st.fixed_dictionaries(
    {"model": references, "layer_range": st.tuples(st.integers(0, 9), st.integers(0, 9)).map(list)},
    optional={"parameters": parameters},
)
slices = st.fixed_dictionaries(
    {"sources": st.lists(sources, max_size=2)}, optional={"base_model": references, "parameters": parameters}
)
dtypes = st.sampled_from([None, "float32", "torch.bfloat16"])
configs = st.fixed_dictionaries(
    {"merge_method": st.just("ties")},
    optional={"base_model": references, "parameters": parameters, "dtype": dtypes, "out_dtype": dtypes},
).flatmap(
    lambda top: st.one_of(
        st.lists(entries, min_size=1, max_size=3).map(lambda models: {**top, "models": models}),
        st.lists(slices, min_size=1, max_size=2).map(lambda slices: {**top, "slices": slices}),
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=configs)
def test_a_resolved_config_is_loaded_as_the_same(tmp_path, raw):
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    config = load(path)
    assert isinstance(config, Config)
    path.write_text(yaml.safe_dump(config.resolved()), encoding="utf-8")
    again = load(path, strict=True) if not config.warnings else load(path)
    assert again == config
    assert load(raw) == config


def test_a_resolved_config_holds_what_is_set_and_nothing_else():
    raw = {
        "merge_method": "ties",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 4], "parameters": {"weight": [1, 0.5]}}]}],
        "base_model": {"model": "a", "override_architecture": "MistralForCausalLM"},
        "parameters": {"density": [{"filter": "mlp", "value": 0.5}, {"value": 1}]},
        "dtype": "torch.float32",
    }
    assert load({**raw, "nothing": "known"}).resolved() == {
        **raw,
        "base_model": {"model": {"path": "a", "revision": None}, "override_architecture": "MistralForCausalLM"},
        "dtype": "float32",
    }
