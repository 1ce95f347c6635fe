"""What comes from files of strangers can't steer the terminal, and what is secret is not shown."""

import pytest

from mergecore.errors import MergeError
from mergecore_cli import console


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("Ünï-cödé ✓ 模型", "Ünï-cödé ✓ 模型"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("one\nerror: two\r", r"one\nerror: two\r"),
        ("\x9b31m", r"\x9b31m"),
        ("gnp.\u202etxt", r"gnp.\u202etxt"),
        ("half \ud800", r"half \ud800"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("http://token@host", "http://***@host"),
        ("token hf_abcdefghijklmnopqrstuvwxyz", "token ***"),
        ("hf_model", "hf_model"),
        ("org/name@main", "org/name@main"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert console.printable(text) == shown


@pytest.mark.parametrize("say", [console.talk, console.warn, lambda text: console.fail(MergeError.at("", text, text))])
def test_all_talk_is_printable_and_neither_markup_nor_emoji(say, monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "quiet", False)
    say("a\x1b[2J [bold]b[/c] :warning:")
    told = capsys.readouterr().err
    assert r"a\x1b[2J [bold]b[/c] :warning:" in told
    assert "\x1b" not in told
