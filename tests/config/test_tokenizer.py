"""The grammar of `tokenizer`, `tokenizer_source` and `chat_template`: what it means, and what is wrong with it."""

from __future__ import annotations

import pytest

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config import Config
from mergecore.config.tokenizer import ModelToken, Token, Tokenizer, ZeroToken

LINEAR = """\
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
"""
TOKEN = LINEAR + "tokenizer:\n  tokens:\n    <|x|>:\n      "


def parsed(**keys: object) -> Config:
    return Config.model_validate({"merge_method": "linear", **keys})


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ({}, Tokenizer(source="union")),
        ({"source": "base", "tokens": None, "pad_to_multiple_of": None}, Tokenizer(source="base")),
        ({"source": "org/m@main"}, Tokenizer(source=ModelReference("org/m", "main"))),
        ({"source": {"model": "m"}}, Tokenizer(source=ModelReference("m"))),
        ({"pad_to_multiple_of": "8"}, Tokenizer(pad_to_multiple_of=8)),
        ({"pad_to_multiple_of": 0}, Tokenizer()),
        ({"tokens": {"<x>": {}}}, Tokenizer(tokens={"<x>": Token()})),
        (
            {"tokens": {"<x>": {"source": "m", "force": "yes"}}},
            Tokenizer(tokens={"<x>": Token(source=ModelReference("m"), force=True)}),
        ),
        ({"tokens": {"<x>": {"source": {"kind": "zero"}}}}, Tokenizer(tokens={"<x>": Token(source=ZeroToken())})),
        (
            {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "m", "token": "<y>"}}}},
            Tokenizer(tokens={"<x>": Token(source=ModelToken(model=ModelReference("m"), token="<y>"))}),
        ),
        (
            {"tokens": {"<x>": {"source": {"kind": "model_token", "model": {"model": "m"}, "token_id": 0}}}},
            Tokenizer(tokens={"<x>": Token(source=ModelToken(model=ModelReference("m"), token_id=0))}),
        ),
    ],
)
def test_what_a_tokenizer_means(value, meaning):
    config = parsed(tokenizer=value)
    assert config.tokenizer == meaning
    assert parsed(**config.resolved()) == config


@pytest.mark.parametrize(
    "template", ["auto", "chatml", "{% for m in messages %}{{ m }}{% endfor %}", "{{ messages }}" * 99]
)
def test_templates(template):
    assert parsed(chat_template=template).chat_template == template


def test_the_older_form():
    assert parsed(tokenizer_source="union").tokenizer_source == "union"
    assert parsed(tokenizer_source="m@r").tokenizer_source == ModelReference("m", "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "tokenizer: union\n", "merge.yml:5: tokenizer: expected a mapping, found 'union'"),
        (LINEAR + "tokenizer:\n  source: 5\n", "merge.yml:6: source: expected the path of a model, found 5"),
        (LINEAR + "tokenizer:\n  tokens: [a]\n", "merge.yml:6: tokens: expected a mapping, found a list"),
        (
            LINEAR + "tokenizer:\n  pad_to_multiple_of: -8\n",
            "merge.yml:6: pad_to_multiple_of: expected a whole number from 0 on as `pad_to_multiple_of`, found -8",
        ),
        (
            LINEAR + "tokenizer:\n  pad_to_multiple_of: true\n",
            "merge.yml:6: pad_to_multiple_of: expected a whole number from 0 on as `pad_to_multiple_of`, found true",
        ),
        (
            LINEAR + "tokenizer:\n  tokens:\n    1: {}\n",
            "merge.yml:7: 1 can't be a token, which is text (hint: put it in quotes)",
        ),
        (LINEAR + "tokenizer:\n  tokens:\n    x:\n", "merge.yml:7: x: expected a mapping, found nothing"),
        (TOKEN + "force: perhaps\n", "merge.yml:8: force: expected true or false, found 'perhaps'"),
        (
            TOKEN + "source: {kind: zreo}\n",
            "merge.yml:8: source: 'zreo' is not a kind of source (hint: did you mean `zero`?)",
        ),
        (
            TOKEN + "source: {kind: [a]}\n",
            "merge.yml:8: source: a list is not a kind of source (hint: the kinds are: model_token, zero)",
        ),
        (
            TOKEN + "source: {kind: model_token, model: m}\n",
            "merge.yml:8: source: a `model_token` needs exactly one of `token` and `token_id`, found neither",
        ),
        (
            TOKEN + "source: {kind: model_token, model: m, token: y, token_id: 1}\n",
            "merge.yml:8: source: a `model_token` needs exactly one of `token` and `token_id`, found both",
        ),
        (
            TOKEN + "source: {kind: model_token, token: y}\n",
            "merge.yml:8: source: a `model_token` needs `model`, the model that has the token",
        ),
        (
            TOKEN + "source: {kind: model_token, model: m, token: 5}\n",
            "merge.yml:8: source: expected text as `token`, found 5 (hint: put it in quotes)",
        ),
        (
            TOKEN + "source: {kind: model_token, model: m, token_id: x}\n",
            "merge.yml:8: source: expected a whole number from 0 on as `token_id`, found 'x'",
        ),
        (
            TOKEN + "source: {model: m, token: y}\n",
            "merge.yml:8: source: a source that names a token needs its kind (hint: add `kind: model_token`)",
        ),
        (TOKEN + "source: 5\n", "merge.yml:8: source: expected the path of a model, found 5"),
        (LINEAR + "tokenizer_source: 5\n", "merge.yml:5: tokenizer_source: expected the path of a model, found 5"),
        (
            LINEAR + "tokenizer_source: union\ntokenizer: {}\n",
            "merge.yml:5: `tokenizer` and `tokenizer_source` are both given "
            "(hint: leave out `tokenizer_source`, the older form of `source` in `tokenizer`)",
        ),
        (LINEAR + "chat_template: [a]\n", "merge.yml:5: chat_template: expected text, found a list"),
        (
            LINEAR + "chat_template: chat-ml\n",
            "merge.yml:5: chat_template: 'chat-ml' is neither the name of a template nor a Jinja template "
            "(hint: did you mean `chatml`? the names are: auto, alpaca, chatml, exaone, llama3, mistral)",
        ),
        (
            LINEAR + "chat_template: '{{ messages }}'\n",
            "merge.yml:5: chat_template: '{{ messages }}' is neither the name of a template nor a Jinja template "
            "(hint: the names are: auto, alpaca, chatml, exaone, llama3, mistral)",
        ),
        # keys that are nearly known
        (
            LINEAR + "tokenizer:\n  sources: union\n",
            "merge.yml:6: `sources` is not a key of the tokenizer (hint: did you mean `source`?)",
        ),
        (
            TOKEN + "forced: true\n",
            "merge.yml:8: `forced` is not a key of an entry of `tokens` (hint: did you mean `force`?)",
        ),
        (
            TOKEN + "source: {kind: model_token, model: m, tokenid: 5}\n",
            "merge.yml:8: `tokenid` is not a key of a token of a model (hint: did you mean `token_id`?)\n"
            "merge.yml:8: source: a `model_token` needs exactly one of `token` and `token_id`, found neither",
        ),
    ],
)
def test_what_is_wrong(complaints, text, message):
    assert complaints(text) == message.splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "tokenizer: {colour: red}\n", "`colour` is not a key of the tokenizer and has no effect"),
        (TOKEN + "source: {kind: zero, model: m}\n", "`model` is not a key of a row of zeros and has no effect"),
    ],
)
def test_what_has_no_effect(complaints, text, message):
    (line,) = complaints(text, strict=True)
    assert message in line
