"""How models are named, and where they are found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.checkpoint.model_reference import LoraReference, ModelReference, locate
from mergecore.errors import PlanError


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


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A working directory `here` with `models/base`, and `configs/code` beside it."""
    (tmp_path / "here" / "models" / "base").mkdir(parents=True)
    (tmp_path / "configs" / "code").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def located(text, folder=None):
    return locate(ModelReference.parse(text), folder)


def test_from_the_working_directory_first(folders):
    configs = folders / "configs"
    assert located("models/base", configs) == Path("models/base")
    assert located("code", configs) == configs / "code"
    Path("code").mkdir()
    assert located("code", configs) == Path("code")
    assert located(str(configs / "code")) == configs / "code"


def test_a_revision_says_nothing_about_a_local_folder(folders):
    assert located("models/base@main") == Path("models/base")


@pytest.mark.parametrize("name", ["a+b", "a@b", "a@b@c", "a+b+c", "models/base+x"])
def test_a_folder_may_be_called_anything(folders, name):
    Path(name).mkdir()
    assert located(name) == Path(name)
    assert located({"model": {"path": name}}) == Path(name)


def error_of(text, folder=None, **options):
    with pytest.raises(PlanError) as caught:
        locate(ModelReference.parse(text), folder, **options)
    (problem,) = caught.value.problems
    return problem


def test_a_folder_that_is_not_there(folders):
    problem = error_of("models/nothing/x", Path("../configs"), where="merge.yml:3")
    assert problem.where == "merge.yml:3"
    assert problem.what == (
        f"there is no model folder `models/nothing/x`: tried `{folders}/here/models/nothing/x` "
        f"and `{folders}/here/../configs/models/nothing/x`"
    )
    assert problem.hint == "paths are relative to the working directory or to the config's folder"


def test_the_same_place_is_named_once(folders):
    assert error_of("/no/such", Path()).what == "there is no model folder `/no/such`: tried `/no/such`"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("models/bsae", "did you mean `models/base`?"),
        ("cood", "did you mean `code`?"),
        (
            "org/name",
            "downloading from the Hub is not supported yet; get it with `hf download org/name --local-dir org/name`",
        ),
        (
            "org/name@v2",
            "downloading from the Hub is not supported yet; "
            "get it with `hf download org/name --revision v2 --local-dir org/name`",
        ),
        ("a@b@c", "only `model@revision+lora@revision` is understood, unless a folder has that very name"),
        ("a+b+c", "only `model@revision+lora@revision` is understood, unless a folder has that very name"),
        ("file", "that is a file; a model is named by its folder"),
        ("./org/name", "paths are relative to the working directory or to the config's folder"),
        ("a\0b", "paths are relative to the working directory or to the config's folder"),
        ("x" * 5000, "paths are relative to the working directory or to the config's folder"),
    ],
)
def test_hints(folders, text, hint):
    Path("file").touch()
    assert error_of(text, Path("../configs")).hint == hint


def test_lora_adapters(folders):
    problem = error_of("models/base+adapter@x", where="merge.yml:3")
    assert str(problem) == "merge.yml:3: LoRA adapters are not supported yet: `models/base+adapter@x`"
    assert problem.hint == "merge the adapter `adapter@x` into `models/base` first, e.g. with peft's merge_and_unload"
