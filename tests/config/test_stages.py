"""Configs of several documents: which takes whose output, in what order, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore.config.stages import load_stages
from mergecore.errors import ConfigError


def document(name: str | None, *models: str, more: str = "") -> str:
    """Five lines and one for each model."""
    named = f"name: {name}\n" if name else "# no name\n"
    entries = "".join(f"- model: {model}\n" for model in models)
    return f"---\n{named}merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{entries}{more}"


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """stages(document, ...) -> the stages of a file that the user calls `merge.yml`."""
    monkeypatch.chdir(tmp_path)

    def stages(*documents: str):
        Path("merge.yml").write_text("".join(documents), encoding="utf-8")
        return load_stages("merge.yml")

    return stages


@pytest.fixture
def complaint(stages):
    def complaint(*documents: str) -> str:
        with pytest.raises(ConfigError) as caught:
            stages(*documents)
        return str(caught.value)

    return complaint


def names(found) -> list[str | None]:
    return [stage.config.name for stage in found]


def test_stages_run_after_those_they_take_the_output_of_otherwise_in_their_order(stages):
    found = stages(document(None, "c", "x"), document("c", "a", "b"), document("b", "x"), document("a", "y"))
    assert names(found) == ["b", "a", "c", None]
    assert [list(stage.inputs) for stage in found] == [[], [], ["a", "b"], ["c"]]
    assert [stage.is_result for stage in found] == [False, False, False, True]


def test_the_stage_without_a_name_comes_last_whoever_needs_it_not(stages):
    assert names(stages(document(None, "x"), document("a", "x"), document("b", "a"))) == ["a", "b", None]


def test_without_a_nameless_stage_the_results_are_those_that_nobody_takes(stages):
    found = stages(document("a", "x"), document("b", "a"), document("c", "a"))
    assert [(stage.config.name, stage.is_result) for stage in found] == [("a", False), ("b", True), ("c", True)]


@pytest.mark.parametrize(
    "reference", ["a", "a@main", "a+adapter", "{model: a}", "{model: {path: a, revision: r}}", "{model: a@r, lora: l}"]
)
def test_every_form_of_a_reference(stages, reference):
    assert list(stages(document(None, reference), document("a", "x"))[1].inputs) == ["a"]


def test_every_place_of_a_reference(stages):
    text = (
        "---\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
        "- base_model: b\n  sources:\n  - {model: c, layer_range: [0, 1]}\n  - {model: d, layer_range: [0, 1]}\n"
    )
    others = [document(name, "x") for name in "abcd"]
    assert set(stages(text, *others)[-1].inputs) == set("abcd")


def test_other_text_is_no_reference(stages):
    """mergekit takes `merge_method: linear` for the stage of that name."""
    found = stages(document("linear", "x"), document("float32", "linear", more="dtype: float32\n"))
    assert names(found) == ["linear", "float32"]
    found = stages(document("org/a", "./a", "org/a/b", "x+org/a"), document(None, "y"))
    assert [list(stage.inputs) for stage in found] == [[], []]


def test_empty_documents_are_left_out(stages):
    assert names(stages("---\n", document("a", "x"), "---\n# nothing\n", document(None, "a"), "---\n")) == ["a", None]


def test_mappings_in_memory_are_stages():
    config = {"merge_method": "linear", "parameters": {"weight": 1}}
    found = load_stages([{**config, "models": [{"model": "a"}]}, {**config, "name": "a", "models": [{"model": "x"}]}])
    assert names(found) == ["a", None]
    with pytest.raises(ConfigError, match=r"^config\[1\]: merge_method: merge_method: expected text, found 5$"):
        load_stages([{**config, "models": [{"model": "a"}]}, {"merge_method": 5, "models": [{"model": "x"}]}])
    with pytest.raises(ConfigError, match=r"^config\[0\]: expected a mapping with `merge_method`, found 5$"):
        load_stages([5])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="^config: there is no config in an empty list$"):
        load_stages([])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [document("a", "b"), document("b", "c"), document("c", "x", "b"), document(None, "a")],
            "merge.yml:12: these stages need each other's output: `b` -> `c` -> `b`",
        ),
        (
            [document("a", "x", "a"), document(None, "a")],
            "merge.yml:7: the stage `a` takes its own output (hint: for a folder of that name write ./ before it)",
        ),
        (
            [document("a", "x"), document("b", "x"), document("a", "b")],
            "merge.yml:14: the name `a` is taken: see merge.yml:2 (hint: choose another)",
        ),
        (
            [document(None, "x"), document("a", "x"), document(None, "a")],
            "merge.yml:15: this document has no `name`, and neither has the one at merge.yml:3 "
            "(hint: only the last stage can do without)",
        ),
        (
            [document("../a", "x"), document(None, "../a")],
            "merge.yml:2: name: '../a' can't be the name of a folder (hint: take letters, digits, `-`, `_` and `.`)",
        ),
        (
            [document("5", "x"), document(None, "5")],
            "merge.yml:2: name: expected text, found 5 (hint: put it in quotes)\n"
            "merge.yml:12: model: expected the path of a model, found 5",
        ),
    ],
)
def test_what_is_wrong_with_stages(complaint, documents, message):
    assert complaint(*documents) == message


def test_what_is_wrong_in_each_document_is_told_at_once_with_the_lines(complaint):
    assert complaint(
        document("a", "x", more="dtyp: y\n"), document(None, "a"), "---\nmerge_method: ties\n"
    ).splitlines() == [
        "merge.yml:7: `dtyp` is not a key of a merge config (hint: did you mean `dtype`?)",
        "merge.yml:15: there is nothing to merge: neither `models`, `slices` nor `modules` has entries",
    ]


@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=6))
def test_any_graph_is_ordered_or_refused(needs):
    """Against the definition: an order exists exactly if stages can be taken away one by one, inputs first."""
    entry = {"merge_method": "linear", "parameters": {"weight": 1}}
    wanted = [{j for j in need if j < len(needs)} for need in needs]
    configs = [
        {**entry, "name": f"s{i}", "models": [{"model": f"s{j}"} for j in sorted(need)] + [{"model": "x"}]}
        for i, need in enumerate(wanted)
    ]
    left = dict(enumerate(wanted))
    while free := [i for i, need in left.items() if not need & left.keys()]:
        for i in free:
            del left[i]
    if left:
        with pytest.raises(ConfigError, match="needs? each other's output|takes its own output"):
            load_stages(configs)
        return
    done: set[str] = set()
    for stage in load_stages(configs):
        assert done >= set(stage.inputs)
        done.add(stage.config.name)
    assert len(done) == len(needs)
