"""Keys that mean nothing: errors where they are misspelt, warnings where mergekit ignores them."""

import pytest

from mergecore.errors import ConfigError

TIES = """\
merge_method: ties
base_model: b
models:
  - model: a
    parameters: {weight: 1}
"""
SLICES = """\
merge_method: passthrough
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
"""


def warnings(config):
    return [f"{w} (hint: {w.hint})" if w.hint else str(w) for w in config.warnings]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TIES + "Dtype: float32\n",
            "merge.yml:6: `Dtype` is not a key of a merge config (hint: did you mean `dtype`?)",
        ),
        (
            TIES + "out-dtype: float32\n",
            "merge.yml:6: `out-dtype` is not a key of a merge config (hint: did you mean `out_dtype`?)",
        ),
        (
            TIES + "tokeniser: {}\n",
            "merge.yml:6: `tokeniser` is not a key of a merge config (hint: did you mean `tokenizer`?)",
        ),
        (
            TIES + "  - modle: c\n",
            "merge.yml:6: `modle` is not a key of an entry of `models` (hint: did you mean `model`?)",
        ),
        (
            TIES + "    params: {}\n  - model: c\n    params: {weight: 1}\n",
            "merge.yml:8: `params` is not a key of an entry of `models` (hint: did you mean `parameters`?)",
        ),
        (
            TIES + "parameters:\n  lamda: 1\n",
            "merge.yml:7: `lamda` is not a parameter of `ties` (hint: did you mean `lambda`?)",
        ),
        (
            TIES + "parameters:\n  normalise: true\n",
            "merge.yml:7: `normalise` is not a parameter of `ties` (hint: did you mean `normalize`?)",
        ),
        (
            TIES + "parameters:\n  density:\n    - value: 1\n    - {filtr: mlp, value: 0.5}\n",
            "merge.yml:9: `filtr` is not a key of a conditional value (hint: did you mean `filter`?)",
        ),
        (
            SLICES + "    base_modell: b\n",
            "merge.yml:6: `base_modell` is not a key of an entry of `slices` (hint: did you mean `base_model`?)",
        ),
        (
            SLICES + "        parameter: {scale: 1}\n",
            "merge.yml:6: `parameter` is not a key of an entry of `sources` (hint: did you mean `parameters`?)",
        ),
        (
            SLICES.replace("layer_range", "layers_range"),
            "merge.yml:5: `layers_range` is not a key of an entry of `sources` (hint: did you mean `layer_range`?)",
        ),
        (
            TIES.replace("base_model: b", "base_model: {model: b, lroa: c}"),
            "merge.yml:2: `lroa` is not a key of a model (hint: did you mean `lora`?)",
        ),
        (
            TIES.replace("base_model: b", "base_model: {model: {path: b, revison: c}}"),
            "merge.yml:2: `revison` is not a key of a path with revision (hint: did you mean `revision`?)",
        ),
    ],
)
def test_misspelt(complaints, text, message):
    assert complaints(text) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIES + "name: mine\n", "merge.yml:6: `name` is for configs of several documents and has no effect here"),
        (TIES + "notes: mine\n", "merge.yml:6: `notes` is not a key of a merge config and has no effect"),
        (TIES + "1: mine\n", "merge.yml:6: `1` is not a key of a merge config and has no effect"),
        (TIES + "on: mine\n", "merge.yml:6: `true` is not a key of a merge config and has no effect"),
        (
            TIES + "input_model_parameters: {weight: 1}\n",
            "merge.yml:6: `input_model_parameters` is not a key of a merge config and has no effect "
            "(hint: write the `parameters` of a model in its entry)",
        ),
        (
            TIES + "pad_to_multiple_of: 8\n",
            "merge.yml:6: `pad_to_multiple_of` is not a key of a merge config and has no effect "
            "(hint: it belongs under `tokenizer`)",
        ),
        (
            TIES + "normalize: false\n",
            "merge.yml:6: `normalize` is not a key of a merge config and has no effect "
            "(hint: move it into `parameters`, it is one of `ties`)",
        ),
        (
            TIES + "    density: 0.5\n",
            "merge.yml:6: `density` is not a key of an entry of `models` and has no effect "
            "(hint: move it into `parameters`, it is one of `ties`)",
        ),
        (
            TIES + "    layer_range: [0, 2]\n",
            "merge.yml:6: `layer_range` is not a key of an entry of `models` and has no effect "
            "(hint: to choose layers, write `slices` with `sources` instead of `models`)",
        ),
        (
            SLICES + "    residual_weight: 0.5\n",
            "merge.yml:6: `residual_weight` is not a key of an entry of `slices` and has no effect "
            "(hint: mergekit accepts it and never uses it)",
        ),
        (
            TIES + "parameters:\n  scale: [1, 2]\n",
            "merge.yml:7: `scale` is not a parameter of `ties` and has no effect (hint: it is one of passthrough)",
        ),
        (
            TIES + "  - model: c\n    parameters:\n      weight: 1\n      normalize: true\n",
            "merge.yml:9: `normalize` has one value for all models, so it has no effect under one of them "
            "(hint: move it into `parameters` at the top level or of a slice)",
        ),
        (
            TIES + "  - model: b\n    parameters:\n      weight: 1\n",
            "merge.yml:8: `weight` belongs to the models other than the base, so it has no effect under the base",
        ),
        (
            TIES + "dtype: float16\ndtype: float32\n",
            "merge.yml:7: `dtype` is given twice, and what line 6 says has no effect",
        ),
        (
            TIES.replace("weight: 1", "weight: 1, weights: 2"),
            "merge.yml:5: `weights` is not a parameter of `ties` and has no effect "
            "(hint: its parameters are: weight, normalize, lambda, int8_mask, density, rescale, trim)",
        ),
        (
            TIES + "_models: [x]\n",
            "merge.yml:6: `_models` is not a key of a merge config and has no effect",
        ),
    ],
)
def test_without_effect(read, complaints, text, message):
    assert warnings(read(text)) == [message]
    assert complaints(text, strict=True) == [message]


def test_of_a_repeated_key_the_last_value_counts(read):
    assert read(TIES + "dtype: float16\ndtype: float32\n").dtype == "float32"


def test_nothing_is_said_about_a_plain_config(read):
    assert read(TIES, strict=True).warnings == ()
    assert read(SLICES, strict=True).warnings == ()


def test_a_parameter_that_is_near_but_belongs_to_another_method(read):
    """`rescale` of `ties` is near to `scale` of passthrough, and mergekit ignores it."""
    config = read(SLICES + "parameters: {rescale: true}\n")
    (message,) = warnings(config)
    assert message.startswith(
        "merge.yml:6: `rescale` is not a parameter of `passthrough` and has no effect (hint: it is one of "
    )


def test_parameters_are_not_judged_without_a_method(complaints):
    with_unknown_method = TIES.replace("merge_method: ties", "merge_method: qqq") + "parameters: {nomalize: x}\n"
    (line,) = complaints(with_unknown_method)
    assert "`qqq` is not a merge method" in line


def test_strict_reports_errors_and_warnings_together(complaints):
    assert [line.split(" is ")[0] for line in complaints("notes: x\n" + TIES + "dtyp: x\n", strict=True)] == [
        "merge.yml:1: `notes`",
        "merge.yml:7: `dtyp`",
    ]


def test_the_error_is_a_config_error(read):
    with pytest.raises(ConfigError) as caught:
        read(TIES + "dtyp: x\n")
    assert caught.value.exit_code == 2
