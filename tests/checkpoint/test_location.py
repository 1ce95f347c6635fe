"""Where models are found: in a folder, in a file, on the Hub."""

from pathlib import Path

import pytest

from mergecore.checkpoint.location import HubModel, locate, locate_adapter
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import PlanError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A working directory `here` with `models/base` and `models/file.bin`, and `configs/code` beside it."""
    (tmp_path / "here" / "models" / "base").mkdir(parents=True)
    (tmp_path / "here" / "models" / "file.bin").touch()
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
    assert locate_adapter(ModelReference.parse(name)) is None


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth", ".ckpt"])
def test_a_file_of_weights(folders, suffix):
    path = Path("models") / f"x{suffix}"
    path.touch()
    assert located(str(path)) == path


def test_what_is_not_here_may_be_on_the_hub(folders):
    assert located("org/name") == HubModel("org/name")
    assert located("org/name@v2") == HubModel("org/name", "v2")
    assert str(HubModel("org/name", "v2")) == "org/name@v2"
    assert located("models/bsae") == HubModel("models/bsae", hint="did you mean `models/base`?")


def test_adapters_are_found_likewise(folders):
    reference = ModelReference.parse("org/name@x+models/base@y")
    assert locate(reference) == HubModel("org/name", "x")
    assert locate_adapter(reference) == Path("models/base")
    assert locate_adapter(ModelReference.parse("models/base+org/lora@y")) == HubModel("org/lora", "y")
    assert locate_adapter(ModelReference.parse("models/base+code"), Path("../configs")) == Path("../configs/code")
    with pytest.raises(PlanError, match=r"^merge.yml:3: there is no model `./lora`: tried `.*/here/lora`"):
        locate_adapter(ModelReference.parse("models/base+./lora"), where="merge.yml:3")


def error_of(text, folder=None, **options):
    with pytest.raises(PlanError) as caught:
        locate(ModelReference.parse(text), folder, **options)
    (problem,) = caught.value.problems
    return problem


START = "relative paths start at the working directory or the config's folder"


def test_a_folder_that_is_not_there(folders):
    problem = error_of("models/nothing/x", Path("../configs"), where="merge.yml:3")
    assert problem.where == "merge.yml:3"
    assert problem.what == (
        f"there is no model `models/nothing/x`: tried `{folders}/here/models/nothing/x` "
        f"and `{folders}/here/../configs/models/nothing/x`"
    )
    assert problem.hint == START


def test_the_same_place_is_named_once(folders):
    assert error_of("/no/such", Path()).what == "there is no model `/no/such`: tried `/no/such`"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("./models/bsae", "did you mean `models/base`?"),
        ("models/fiel.bin", "did you mean `models/file.bin`?"),
        ("cood", "did you mean `code`?"),
        ("a@b@c", "only `model@revision+lora@revision` is understood, unless a folder has that very name"),
        ("a+b+c", "only `model@revision+lora@revision` is understood, unless a folder has that very name"),
        ("file", "a file of weights ends in one of .safetensors, .bin, .pt, .pth, .ckpt"),
        ("./org/name", START),
        ("org/name.safetensors", START),
        ("a\0b", START),
        ("x" * 5000, START),
    ],
)
def test_hints(folders, text, hint):
    Path("file").touch()
    assert error_of(text, Path("../configs")).hint == hint
