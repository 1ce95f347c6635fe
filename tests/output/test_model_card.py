"""The card: valid metadata, and names from configs that stay names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mergecore import merge, plan
from mergecore.output.model_card import escaped, fenced, model_card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("org/my_model-7b", "org/my_model-7b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[click](http://x)", r"\[click\](http://x)"),
        ("![x](http://x)", r"\!\[x\](http://x)"),
        ("a\n# Title", r"a\\n\# Title"),
        ("`code` *bold* a|b", r"\`code\` \*bold\* a\|b"),
        ("half \ud800", r"half \\ud800"),
    ],
)
def test_names_are_only_text(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.parametrize("text", ["a: b\n", "a: '```'\n", "a: |\n  ``````\n  # Title\n"])
def test_a_block_ends_where_it_should(text: str) -> None:
    first, *lines, last = fenced(text).splitlines()
    assert first == last + "yaml"
    assert "\n".join(lines) + "\n" == text
    assert not any(re.match(rf"\s*{last}", line) for line in lines)


def test_a_folder_with_a_name_that_is_markdown(make_model, tmp_path: Path) -> None:
    folder = make_model("```\n# [x](y) <img>")
    card = model_card(plan({"merge_method": "passthrough", "models": [{"model": str(folder)}]}))
    models = card.split("## Models\n\n")[1].split("## Configuration")[0]
    assert models.endswith(r"\`\`\`\\n\# \[x\](y) &lt;img&gt;" + "\n\n")
    assert yaml.safe_load(card.split("````yaml\n")[1].removesuffix("````\n"))["models"] == [{"model": str(folder)}]


def test_the_metadata_names_no_local_folder(make_model, hub, tmp_path: Path) -> None:
    a = make_model("a")
    commit = hub.add("org/b", make_model("b", seed=1))
    entries = [{"model": model, "parameters": {"weight": 1}} for model in (str(a), "org/b@main", "org/b")]
    merge({"merge_method": "linear", "models": entries}, tmp_path / "out", workers=0)
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = card.split("---\n")[1]
    assert yaml.safe_load(metadata)["base_model"] == ["org/b"]
    assert str(tmp_path) not in metadata
    assert f"- org/b@main (commit {commit})" in card
