"""What users read when a config is wrong: every message, with its line."""

import pytest

LINEAR = """\
merge_method: linear
models:
  - model: a
    parameters:
      weight: 1
"""
DTYPES = "bfloat16, float16, float32, float64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the wrong form
        ("merge_method: linear\nmodels: a\n", "merge.yml:2: models: expected a list, found 'a'"),
        ("merge_method: linear\nmodels: {model: a}\n", "merge.yml:2: models: expected a list, found a mapping"),
        (
            "merge_method: linear\nmodels:\n  - a\n",
            "merge.yml:3: models[0]: expected a mapping, found 'a' (hint: write `- model: a`)",
        ),
        ("merge_method: 5\nmodels: [{model: a}]\n", "merge.yml:1: merge_method: expected text, found 5"),
        ("models: [{model: a}]\n", "merge.yml: `merge_method` is missing"),
        (
            "merge_method: linear\nmodels:\n  - parameters: {}\n",
            "merge.yml:3: `model` is missing in models[0]",
        ),
        (
            "merge_method: linear\n",
            "merge.yml: there is nothing to merge: neither `models`, `slices` nor `modules` has entries",
        ),
        (
            "merge_method: linear\nmodels: []\n",
            "merge.yml: there is nothing to merge: neither `models`, `slices` nor `modules` has entries",
        ),
        (
            LINEAR + "slices:\n  - sources: []\n",
            "merge.yml:6: `models` and `slices` both have entries, and only one of them can",
        ),
        (LINEAR + "parameters: [1]\n", "merge.yml:6: parameters: expected a mapping, found a list"),
        (
            LINEAR + "parameters: {5: 1}\n",
            "merge.yml:6: 5 can't be the name of a parameter, which is text (hint: put it in quotes)",
        ),
        # models
        ("merge_method: linear\nmodels:\n- model: 5\n", "merge.yml:3: model: expected the path of a model, found 5"),
        (LINEAR + "base_model: ''\n", "merge.yml:6: base_model: expected the path of a model, found an empty text"),
        (
            LINEAR + "base_model:\n  lora: x\n",
            "merge.yml:6: base_model: a model that is written as a mapping needs `model`, its path",
        ),
        (
            LINEAR + "base_model: {model: {path: 3}}\n",
            "merge.yml:6: base_model: expected a path, or `path` and `revision`, as `model`, found {'path': 3}",
        ),
        (
            LINEAR + "base_model: {model: a, override_architecture: 3}\n",
            "merge.yml:6: base_model: expected the name of a class as `override_architecture`, found 3",
        ),
        # layers
        (
            "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n",
            "merge.yml:4: `layer_range` is missing in slices[0].sources[0]",
        ),
        ("merge_method: passthrough\nslices:\n- parameters: {}\n", "merge.yml:3: `sources` is missing in slices[0]"),
        (
            "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [0, 1.5]\n",
            "merge.yml:5: layer_range: expected two whole numbers, [first layer, layer after the last], found [0, 1.5]",
        ),
        (
            "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: 0-3\n",
            "merge.yml:5: layer_range: expected two whole numbers, [first layer, layer after the last], found '0-3'",
        ),
        (
            "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [-2, 3]\n",
            "merge.yml:5: layer_range: layers count from 0, found [-2, 3]",
        ),
        # dtypes
        (
            LINEAR + "dtype: bf16\n",
            f"merge.yml:6: dtype: `bf16` is not a dtype for a merge "
            f"(hint: did you mean `bfloat16`? the dtypes are: {DTYPES})",
        ),
        (
            LINEAR + "out_dtype: flaot32\n",
            f"merge.yml:6: out_dtype: `flaot32` is not a dtype for a merge "
            f"(hint: did you mean `float32`? the dtypes are: {DTYPES})",
        ),
        (
            LINEAR + "dtype: int64\n",
            f"merge.yml:6: dtype: `int64` would cut every weight to a whole number (hint: the dtypes are: {DTYPES})",
        ),
        (
            LINEAR + "dtype: 16\n",
            f"merge.yml:6: dtype: expected the name of a dtype, found 16 (hint: the dtypes are: {DTYPES})",
        ),
        # settings
        (LINEAR + "parameters:\n  weight:\n", "merge.yml:7: weight: expected a number, found nothing"),
        (LINEAR + "parameters:\n  weight: abc\n", "merge.yml:7: weight: expected a number, found 'abc'"),
        (LINEAR + "parameters:\n  weight: .nan\n", "merge.yml:7: weight: expected a finite number, found nan"),
        (LINEAR + "parameters:\n  weight: '1e999'\n", "merge.yml:7: weight: expected a finite number, found '1e999'"),
        (LINEAR + "parameters:\n  normalize: 2\n", "merge.yml:7: normalize: expected true or false, found 2"),
        (
            LINEAR + "parameters:\n  weight:\n  - 1\n  - x\n",
            "merge.yml:9: weight: expected a number, found 'x'",
        ),
        (
            LINEAR + "parameters:\n  weight:\n  - 1\n  - [2]\n",
            "merge.yml:9: weight: expected a number, found a list",
        ),
        (
            LINEAR + "parameters:\n  weight:\n  - 1\n  - value: 2\n",
            "merge.yml:9: weight: a list holds either numbers or mappings with `value`, not both",
        ),
        (
            LINEAR + "parameters:\n  weight:\n  - value: 1\n  - filter: mlp\n",
            "merge.yml:9: weight: expected `value`, and perhaps `filter`, in each mapping",
        ),
        (
            LINEAR + "parameters:\n  weight:\n  - value: 1\n    filter: 3\n",
            "merge.yml:9: weight: expected text as `filter`, found 3",
        ),
        (
            LINEAR + "parameters:\n  weight:\n  - filter: mlp\n    value: [1, y]\n",
            "merge.yml:9: weight: expected a number, found 'y'",
        ),
        (
            "merge_method: linear\nmodules:\n  default: {}\n",
            "merge.yml:3: there is nothing to merge in modules.default: neither `models` nor `slices` has entries",
        ),
    ],
)
def test_one_problem(complaints, text, message):
    assert complaints(text) == [message]


def test_unknown_method(complaints):
    (line,) = complaints("models: [{model: a}]\nmerge_method: tyes\n")
    assert line == "merge.yml:2: `tyes` is not a merge method (hint: did you mean `ties`?)"
    (line,) = complaints("models: [{model: a}]\nmerge_method: DARE-TIES\n")
    assert line == "merge.yml:2: `DARE-TIES` is not a merge method (hint: did you mean `dare_ties`?)"
    (line,) = complaints("models: [{model: a}]\nmerge_method: frobnicate\n")
    assert line.startswith("merge.yml:2: `frobnicate` is not a merge method (hint: the methods are: ")
    assert "linear" in line


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(complaints):
    assert complaints(
        "out_dtype: fp8\n"
        "models:\n"
        "  - model: 3\n"
        "    parameters: {weight: abc, densty: 0.5}\n"
        "  - b\n"
        "base_modle: c\n"
        "parameters: {normalize: maybe}\n"
        "tokenizer_source: 5\n"
        "merge_mehtod: ties\n"
    ) == [
        f"merge.yml:1: out_dtype: `fp8` is not a dtype for a merge (hint: the dtypes are: {DTYPES})",
        "merge.yml:3: model: expected the path of a model, found 3",
        "merge.yml:4: `densty` is not a parameter of `ties` (hint: did you mean `density`?)",
        "merge.yml:4: weight: expected a number, found 'abc'",
        "merge.yml:5: models[1]: expected a mapping, found 'b' (hint: write `- model: b`)",
        "merge.yml:6: `base_modle` is not a key of a merge config (hint: did you mean `base_model`?)",
        "merge.yml:7: normalize: expected true or false, found 'maybe'",
        "merge.yml:8: tokenizer_source: expected the path of a model, found 5",
        "merge.yml:9: `merge_mehtod` is not a key of a merge config (hint: did you mean `merge_method`?)",
    ]


def test_an_integer_parameter_takes_whole_numbers_only(complaints, read, whole_number_method):
    text = f"merge_method: {whole_number_method}\nmodels: [{{model: a}}]\nparameters:\n  max_iter: "
    assert complaints(text + "2.5") == ["merge.yml:4: max_iter: expected a whole number, found 2.5"]
    for value in ("5.0", "'3'", "true", "[5, 10]"):
        read(text + value)


@pytest.mark.parametrize("value", ["1e-5", "true", "'0.5'", "[0, true, '1e-3']", "{value: 1}", "[]", "{value: []}"])
def test_whatever_mergekit_takes_for_a_number_is_one(read, value):
    read(LINEAR + f"parameters:\n  weight: {value}\n")


@pytest.mark.parametrize("value", ["true", "0", "1.0", "'yes'", "'off'", "'T'", "[true, false]", "[1, 0, 0]"])
def test_whatever_mergekit_takes_for_a_truth_value_is_one(read, value):
    read(LINEAR + f"parameters:\n  normalize: {value}\n")


def test_values_that_are_never_used_may_be_anything(read):
    read(
        "merge_method: ties\n"
        "base_model: b\n"
        "models:\n"
        "  - model: b\n"
        "    parameters: {weight: abc}\n"
        "  - model: a\n"
        "    parameters: {weight: 1, normalize: perhaps}\n"
        "parameters: {epsilon: many, something_else: [a, b]}\n"
    )
    read(
        "merge_method: ties\n"
        "base_model: b\n"
        "slices:\n"
        "  - base_model: c\n"
        "    sources:\n"
        "      - {model: c, layer_range: [0, 2], parameters: {weight: abc}}\n"
    )


def test_of_a_slice_with_a_base_of_its_own_the_other_base_is_an_ordinary_model(complaints):
    assert complaints(
        "merge_method: ties\n"
        "base_model: b\n"
        "slices:\n"
        "  - base_model: c\n"
        "    sources:\n"
        "      - {model: b, layer_range: [0, 2], parameters: {weight: abc}}\n"
    ) == ["merge.yml:6: weight: expected a number, found 'abc'"]


def test_absent_is_what_mergekit_takes_for_absent(read):
    config = read(
        LINEAR + "slices: []\nmodules: {}\ntokenizer:\ntokenizer_source:\nchat_template: ''\n"
        "base_model:\ndtype:\nout_dtype:\nparameters:\n"
    )
    assert config == read(LINEAR)
    assert config.warnings == ()
