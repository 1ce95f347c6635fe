"""From a file or a mapping to values with lines, for YAML that is broken, hostile or odd."""

import random
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config import load
from mergecore.errors import ConfigError

LINEAR = """\
merge_method: linear
models:
  - model: a
    parameters:
      weight: 1
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "merge.yml: the file is empty: expected a mapping with `merge_method`"),
        ("# nothing but this\n---\n", "merge.yml: the file is empty: expected a mapping with `merge_method`"),
        ("- a\n", "merge.yml:1: expected a mapping with `merge_method`, found a list"),
        ("linear\n", "merge.yml:1: expected a mapping with `merge_method`, found 'linear'"),
        (
            LINEAR + "\tdtype: float32\n",
            "merge.yml:6: broken YAML: found character '\\t' that cannot start any token "
            "(hint: indent with spaces, YAML allows no tabs there)",
        ),
        (
            LINEAR + "parameters: {t: [0, 1\ndtype: float32\n",
            "merge.yml:7: broken YAML: expected ',' or ']', but got ':' "
            "(while parsing a flow sequence that begins in line 6)",
        ),
        (
            LINEAR + "dtype: 'float32\n",
            "merge.yml:7: broken YAML: found unexpected end of stream "
            "(while scanning a quoted scalar that begins in line 6)",
        ),
        (LINEAR + "dtype: *nowhere\n", "merge.yml:6: broken YAML: found undefined alias 'nowhere'"),
        (
            LINEAR + "---\nmerge_method: passthrough\nmodels: [{model: a}]\n",
            "merge.yml:7: a second document begins here: this is a config of several stages, expected a single merge",
        ),
        (LINEAR + "---\n- a\n", "merge.yml:7: expected a mapping with `merge_method`, found a list"),
        (LINEAR + "dtype: float\x0732\n", "merge.yml:6: the character '\\x07' is not allowed in YAML"),
        (LINEAR + "x: !!int abc\n", "merge.yml:6: 'abc' is not a valid `!!int`"),
        (LINEAR + "x: 2024-13-45\n", "merge.yml:6: '2024-13-45' is not a valid `!!timestamp`"),
        (LINEAR + "? [a, b]\n: 1\n", "merge.yml:6: a key must be plain text, not a list or a mapping"),
        (LINEAR + "<<: 5\n", "merge.yml:6: `<<` merges mappings, and this is none"),
        (LINEAR + "x: &a [*a]\n", "merge.yml:6: nested too deeply, or an alias that contains itself"),
        (LINEAR + "x: &a {<<: *a}\n", "merge.yml: nested too deeply"),
        (LINEAR + "x: " + "[" * 5000, "merge.yml: nested too deeply"),
    ],
)
def test_what_is_no_config(complaints, text, message):
    assert complaints(text) == [message]


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.mkdir [ran]", "python/object:os.system {}", "python/name:os.system"]
)
def test_tags_are_never_run(complaints, tag):
    (message,) = complaints(f"merge_method: !!{tag}\n")
    assert message.startswith("merge.yml:1: the YAML tag ")
    assert message.endswith(" is not allowed")
    assert not Path("ran").exists()


@pytest.mark.parametrize("line", ["{b}: &{b} [{aliases}]\n", "{b}: &{b} {{<<: [{aliases}]}}\n"])
def test_an_explosion_of_aliases_ends_soon(complaints, line):
    names = "abcdefghijkl"
    text = "a: &a {x: 1}\n" + "".join(line.format(b=b, aliases=", ".join([f"*{a}"] * 10)) for a, b in pairwise(names))
    (message,) = complaints(text)
    assert "the aliases of this file stand for more than 250,000 values" in message


def test_anchors_aliases_and_merged_mappings(read):
    config = read(
        "x-common: &common {weight: 0.5, density: 0.7}\n"
        "merge_method: ties\n"
        "base_model: b\n"
        "models:\n"
        "  - model: a\n"
        "    parameters: *common\n"
        "  - model: c\n"
        "    parameters:\n"
        "      density: 0.9\n"
        "      <<: [{weight: 0.1}, *common]\n"
    )
    assert config.models[0].parameters == {"weight": 0.5, "density": 0.7}
    assert config.models[1].parameters == {"weight": 0.1, "density": 0.9}
    assert config.where("models", 1, "parameters", "density") == "merge.yml:9"
    assert config.where("models", 1, "parameters", "weight") == "merge.yml:10"


def test_the_line_of_every_key(read):
    config = read(LINEAR)
    assert config.where("merge_method") == "merge.yml:1"
    assert config.where("models") == "merge.yml:2"
    assert config.where("models", 0) == "merge.yml:3"
    assert config.where("models", 0, "model") == "merge.yml:3"
    assert config.where("models", 0, "parameters", "weight") == "merge.yml:5"
    assert config.where("models", 0, "parameters", "density") == "merge.yml:4"
    assert config.where("models", 3) == "merge.yml:2"
    assert config.where("dtype") == "merge.yml"
    assert config.where() == "merge.yml"


def test_the_config_knows_its_file(read):
    config = read("# why\n" + LINEAR)
    assert config.path == Path("merge.yml")
    assert config.folder == Path()
    assert config.source_text == "# why\n" + LINEAR
    assert config.raw["models"] == [{"model": "a", "parameters": {"weight": 1}}]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "merge.yml"
    path.write_bytes(b"\xef\xbb\xbf" + LINEAR.encode())
    assert load(path).merge_method == "linear"


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ties.yml").touch()
    Path("folder").mkdir()
    Path("latin.yml").write_bytes(b"merge_method: linear\n# caf\xe9\n")
    with Path("model.safetensors").open("wb") as large:
        large.truncate(16_000_001)
    for name, message in {
        "tise.yml": r"^tise.yml: there is no such file \(hint: did you mean `ties.yml`\?\)$",
        "nowhere/ties.yml": r"^nowhere/ties.yml: there is no such file \(hint: there is no folder `nowhere` either\)$",
        "folder": "^folder: expected a YAML file, found a folder$",
        "latin.yml": "^latin.yml:2: not UTF-8 text: byte 0xe9$",
        "model.safetensors": "^model.safetensors: this is no config: it has more than 16 MB$",
        "a\0b": "can't be read: embedded null byte$",
        "a" * 5000: "can't be read: File name too long$",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(name)


def test_a_mapping_in_memory():
    config = load(
        {
            "merge_method": "linear",
            "models": ({"model": ModelReference("a"), "parameters": {"weight": (0, 1)}}, {"model": Path("dir/b")}),
        }
    )
    assert [str(entry.model) for entry in config.models] == ["a", "dir/b"]
    assert config.models[0].parameters == {"weight": (0, 1)}
    assert config.path is None
    assert config.folder is None
    assert config.where("models", 0, "parameters", "weight") == "config: models[0].parameters.weight"
    assert config.where() == "config"
    assert config.source_text.startswith("merge_method: linear\nmodels:\n- model: a\n")


def test_problems_of_a_mapping_name_the_key_path():
    with pytest.raises(ConfigError) as caught:
        load({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": "abc"}}], "dtyp": "x"})
    assert str(caught.value).splitlines() == [
        "config: dtyp: `dtyp` is not a key of a merge config (hint: did you mean `dtype`?)",
        "config: models[0].parameters.weight: weight: expected a number, found 'abc'",
    ]


def test_a_mapping_that_contains_itself():
    endless: dict = {"merge_method": "linear"}
    endless["models"] = [endless]
    with pytest.raises(ConfigError, match=r"^config: too many values, or nested too deeply$"):
        load(endless)


def test_mangled_files_end_in_one_clear_error(read):
    """Bytes cut, doubled and swapped: whatever comes out is a config or a ConfigError."""
    chance = random.Random(1)
    for _ in range(150):
        text = list(LINEAR + "dtype: bfloat16\n")
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice("\t\n:[]{}&*!|>'\"%@`-?, a0#")
        with suppress(ConfigError):
            read("".join(text))
