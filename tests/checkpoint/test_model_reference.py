"""How models are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.checkpoint.model_reference import LoraReference, ModelReference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a", ModelReference("a")),
        ("org/name", ModelReference("org/name")),
        ("org/name@rev", ModelReference("org/name", "rev")),
        ("a+b", ModelReference("a", None, LoraReference("b"))),
        ("a@x+b@y", ModelReference("a", "x", LoraReference("b", "y"))),
        ("a@", ModelReference("a", "")),
        # what breaks the grammar can only be a folder of that name
        ("a@b@c", ModelReference("a@b@c")),
        ("a+b+c", ModelReference("a+b+c")),
        ("a+b@c@d", ModelReference("a+b@c@d")),
        ("+b", ModelReference("+b")),
        ("a+", ModelReference("a+")),
    ],
)
def test_text(text, reference):
    assert ModelReference.parse(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    ("mapping", "reference"),
    [
        ({"model": "a"}, ModelReference("a")),
        ({"model": "a@x", "lora": "b@y"}, ModelReference("a", "x", LoraReference("b", "y"))),
        ({"model": "a", "lora": None}, ModelReference("a")),
        ({"model": "a+b"}, ModelReference("a+b")),
        ({"model": {"path": "a@b", "revision": "x"}}, ModelReference("a@b", "x")),
        (
            {"model": {"path": "a"}, "override_architecture": "LlamaForCausalLM"},
            ModelReference("a", override_architecture="LlamaForCausalLM"),
        ),
    ],
)
def test_mapping(mapping, reference):
    assert ModelReference.parse(mapping) == reference


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "^expected the path of a model, found 5$"),
        (None, "^expected the path of a model, found nothing$"),
        (" ", "^expected the path of a model, found an empty text$"),
        ({"lora": "b"}, "^a model that is written as a mapping needs `model`, its path$"),
        ({"model": None}, "^expected a path, or `path` and `revision`, as `model`, found nothing$"),
        ({"model": "a", "lora": 3}, "^expected a path, or `path` and `revision`, as `lora`, found 3$"),
        ({"model": {"path": "a", "revision": 3}}, "^expected a path, or `path` and `revision`, as `model`, found {"),
        ({"model": "a", "override_architecture": []}, "^expected the name of a class as `override_architecture`"),
    ],
)
def test_what_names_no_model(value, message):
    with pytest.raises(ValueError, match=message):
        ModelReference.parse(value)


def test_identity_is_textual():
    names = ["a", "./a", "a@main", "a+b"]
    assert len({ModelReference.parse(name) for name in names}) == 4
    assert ModelReference.parse("a@x") == ModelReference.parse({"model": "a@x"})


parts = st.text("ab+@/.", min_size=1, max_size=6)
revisions = st.none() | parts
references = st.builds(
    ModelReference, parts, revisions, st.none() | st.builds(LoraReference, parts, revisions), st.none() | parts
)


@given(references)
def test_what_is_written_as_yaml_is_read_as_the_same(reference):
    assert ModelReference.parse(reference.as_yaml()) == reference


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_is_given_back(text):
    assert str(ModelReference.parse(text)) == text
