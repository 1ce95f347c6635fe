"""The section of the card, and the chart: what they say, and what a second run does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergecore.errors import CheckpointError, RunError
from mergecore.evaluation.card import check_card, write_card
from mergecore.evaluation.chart import draw_scores
from mergecore.evaluation.scores import ModelScore, TaskScore, TextScore

pytest.importorskip("lm_eval")  # its version is told


def scores(folder: Path, loss: float = 1.25) -> list[ModelScore]:
    """Of a merged model and one of its inputs."""
    mmlu = TaskScore("mmlu", "acc", "none", 0.5, 0.01, True, examples=100, shots=None, asked_for=True)
    part = TaskScore("mmlu_law", "acc", "none", 0.4, 0.02, True, examples=50, shots=5, asked_for=False)
    gsm8k = TaskScore("gsm8k", "exact_match", "strict-match", 0.25, None, True, examples=9, shots=5, asked_for=True)
    text = TextScore(Path("texts/prose.txt"), 100, loss)
    return [ModelScore(model, (text,), (), (mmlu, part, gsm8k)) for model in (folder, Path("a|b"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\ntags: [merge]\n---\n\n# A merge\n\nWords of mine.\n")
    return tmp_path


def write(folder: Path, loss: float = 1.25, limit: int | None = None) -> str:
    check_card(folder)
    write_card(folder, scores(folder, loss), [str(folder), "a|b"], window=128, dtype="float32", limit=limit)
    return (folder / "README.md").read_text()


SECTION = """\
<!-- begin: mergecore eval -->
## Evaluation

| model | prose, loss | mean |
|---|---|---|
| this model | 1.250 | 1.250 |
| a\\|b | 1.250 | 1.250 |

Loss: mean of -ln p per token, in windows of 128 tokens that don't overlap.

| model | mmlu, acc | gsm8k, exact_match, strict-match |
|---|---|---|
| this model | 0.500 ± 0.010 | 0.250 |
| a\\|b | 0.500 ± 0.010 | 0.250 |

Tasks by lm-eval VERSION; ± is the standard error. Shots: mmlu various, gsm8k 5.

Computed in float32.
<!-- end: mergecore eval -->
"""


def test_the_section_comes_after_what_is_there(folder: Path) -> None:
    from importlib.metadata import version

    before = (folder / "README.md").read_text()
    assert write(folder) == before + "\n" + SECTION.replace("VERSION", version("lm_eval"))


def test_a_second_run_replaces_it_where_it_is(folder: Path) -> None:
    first = write(folder)
    assert write(folder) == first
    (folder / "README.md").write_text(first + "\n## More words of mine\n")
    changed = write(folder, loss=2.5, limit=10)
    assert changed.count("## Evaluation") == 1
    assert changed.startswith(first.partition("<!--")[0])
    assert changed.endswith("<!-- end: mergecore eval -->\n\n## More words of mine\n")
    assert "| this model | 2.500 |" in changed
    assert ", the first 10 examples of each task; " in changed
    assert "1.250" not in changed


def test_cards_that_can_not_take_it(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text("<!-- begin: mergecore eval -->\n")
    with pytest.raises(CheckpointError, match="has `<!-- begin: mergecore eval -->` without `<!-- end"):
        check_card(folder)
    card.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"README\.md: can't be read"):
        check_card(folder)
    card.unlink()
    with pytest.raises(CheckpointError, match=r"has no README\.md, so there is no card to write into"):
        check_card(folder)


def test_a_link_in_the_place_of_the_new_card_is_not_followed(folder: Path) -> None:
    other = folder / "other.txt"
    other.write_text("keep me")
    (folder / "README.md.partial").symlink_to(other)
    assert "## Evaluation" in write(folder)
    assert other.read_text() == "keep me"


def test_a_card_that_can_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match=r"README\.md: can't be written: Permission denied"):
        write(folder)


@pytest.mark.parametrize("name", ["chart.svg", "chart.png"])
def test_the_chart_has_a_panel_for_texts_and_one_for_tasks(folder: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    draw_scores(scores(folder), ["merged", "a"], folder / name)
    content = (folder / name).read_bytes()
    if name.endswith("png"):
        assert content.startswith(b"\x89PNG")
    else:
        for text in ("merged", "prose", "gsm8k", "exact_match, strict-match", "loss (lower is better)", "0.500"):
            assert text.encode() in content
        assert b"mmlu_law" not in content
