"""Chat templates: which one is taken, what it writes, and where it lies in the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import TEXTS, save_model, train

import mergecore
from mergecore import PlanError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
OWN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def model(folder: Path, template: Any = None, file: str | None = None) -> Path:
    settings = {} if template is None else {"chat_template": template}
    save_model(folder, train("BPE", TEXTS["a"], size=200), 0, settings=settings)
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    return folder


def merged(template: str, *models: Path, **options: Any) -> Path:
    config = {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}
    out = models[0].parent / "out"
    mergecore.merge(config | {"chat_template": template}, out, workers=0, **options)
    return out


def written(folder: Path, talk: list[dict[str, str]], *, prompt: bool = False) -> str:
    from transformers import AutoTokenizer

    text: str = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        talk, tokenize=False, add_generation_prompt=prompt
    )
    return text


@pytest.mark.parametrize(
    ("name", "text", "prompt"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
        (
            "alpaca",
            "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye",
            "\n\n### Response:\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "exaone",
            "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]Bye\n",
            "[|assistant|]",
        ),
        ("mistral", "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]", ""),
    ],
)
def test_templates_with_a_name(tmp_path: Path, name: str, text: str, prompt: str) -> None:
    out = merged(name, model(tmp_path / "a", template=OWN))
    assert written(out, TALK) == text
    assert written(out, TALK, prompt=True) == text + prompt
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())


def test_what_templates_do_without_a_system_message(tmp_path: Path) -> None:
    a = model(tmp_path / "a")
    assert written(merged("exaone", a), TALK[1:2]) == "[|system|][|endofturn|]\n[|user|]Hi\n"
    assert written(merged("mistral", a, overwrite=True), TALK[1:3]) == "<s> [INST] Hi [/INST] Hello</s>"
    with pytest.raises(Exception, match="user and assistant must take turns"):
        written(tmp_path / "out", TALK[2:])


@pytest.mark.parametrize(
    "template",
    [
        OWN,
        OWN + "{% generation %}x{% endgeneration %}",
        "{% for m in messages %}{% break %}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_of_ones_own(tmp_path: Path, template: str) -> None:
    out = merged(template, model(tmp_path / "a", file="{{ 'another one' }}"))
    assert (out / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m }", "{% if x %}{{ messages }}", "{{ messages[ }} and more of it"]
)
def test_wrong_templates_are_found_when_planning(tmp_path: Path, template: str) -> None:
    config = {
        "merge_method": "passthrough",
        "models": [{"model": str(model(tmp_path / "a"))}],
        "chat_template": template,
    }
    with pytest.raises(PlanError, match="config: chat_template: `chat_template` is not valid Jinja, in its line 1: "):
        mergecore.plan(config)


def test_auto_takes_the_most_frequent(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "{{ 'tools' }}"}, {"name": "default", "template": OWN + "\n"}]
    models = [
        model(tmp_path / "a", "{{ 'a' }}"),
        model(tmp_path / "b", named),
        model(tmp_path / "c", "{{ 'c' }}", file=OWN),
    ]
    assert (merged("auto", *models) / "chat_template.jinja").read_text() == OWN
    assert (merged("auto", *models[:2], overwrite=True) / "chat_template.jinja").read_text() == "{{ 'a' }}"


@pytest.mark.parametrize("template", [None, 3, [], ["x"], [{"name": "default"}], [{"name": "default", "template": 3}]])
def test_auto_without_a_template(tmp_path: Path, template: Any) -> None:
    a = model(tmp_path / "a", template)
    out = merged("auto", a)
    assert not (out / "chat_template.jinja").exists()
    plan = mergecore.plan({"merge_method": "passthrough", "models": [{"model": str(a)}], "chat_template": "auto"})
    assert plan.notes == (
        "config: chat_template: `chat_template: auto` has no effect, as none of the models has a template",
    )


def test_an_older_file_of_templates_gives_way(tmp_path: Path) -> None:
    a = model(tmp_path / "a")
    (a / "chat_template.json").write_text(json.dumps({"chat_template": OWN}))
    assert (merged("auto", a) / "chat_template.jinja").read_text() == OWN
    assert not (tmp_path / "out" / "chat_template.json").exists()


def test_what_the_config_asks_for_is_written_without_copying(tmp_path: Path) -> None:
    out = merged("chatml", model(tmp_path / "a"), copy_tokenizer=False)
    assert written(out, TALK[1:2]) == "<|im_start|>user\nHi<|im_end|>\n"
