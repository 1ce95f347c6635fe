"""README.md of the output: what was merged, how, and from what."""

from __future__ import annotations

import html
import re

import yaml

from mergecore import methods
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.plan.plan import Model, Plan

CARD = "README.md"
_MARKUP = re.compile(r"[\\`*\[\]|#!]")
"""What begins something in Markdown, but for `<` and `&`."""


def model_card(plan: Plan) -> str:
    """The card in the Hub's format: metadata, then text."""
    method = methods.get(plan.method)
    inputs = _inputs(plan)
    on_hub = list(dict.fromkeys(ModelReference.parse(model.name).path for model in inputs if model.commit))
    metadata = {
        **({"base_model": on_hub} if on_hub else {}),
        **({"library_name": "transformers"} if plan.donor_config else {}),
        "tags": ["merge", "mergecore", *dict.fromkeys(stage.method for stage in (plan, *plan.before))],
    }
    models = "\n".join(
        f"- {escaped(model.name)}{f' (commit {model.commit})' if model.commit else ''}" for model in inputs
    )
    by_name = "" if plan.donor_config else "\n\nThere is no config.json: the tensors were merged by their names."
    seeds = {stage.seed for stage in (*plan.before, plan)} - {None}
    seed = f"\n\nRandom seed: {', '.join(map(str, seeds))}" if seeds else ""
    stages = f", the last of {len(plan.before) + 1} stages" if plan.before else ""
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {_title(plan, len(inputs))}\n\n"
        f"Merged with mergecore, method `{plan.method}`{stages}: {' '.join(method.doc.split())}\n\n"
        f"Source of the method: {method.paper}{seed}{by_name}\n\n"
        f"## Models\n\n{models}\n\n{_tokens(plan)}"
        f"## Configuration\n\n{fenced(config_text(plan))}"
    )


def _title(plan: Plan, n_models: int) -> str:
    if plan.gates is None:
        return f"A merge of {n_models} models"
    return f"A mixture of {len(plan.config['experts'])} experts"


def _tokens(plan: Plan) -> str:
    """What became of the vocabularies, if anything did."""
    if plan.vocabulary is None:
        return ""
    models = "\n".join(f"- {escaped(str(model))}" for model in plan.vocabulary.models)
    return f"## Tokens\n\nVocabulary by {escaped(str(plan.vocabulary))}. Tokens of the models:\n\n{models}\n\n"


def config_text(plan: Plan) -> str:
    """The resolved config, ready to be run again: a document for each stage."""
    configs = [stage.config for stage in (*plan.before, plan)]
    return yaml.safe_dump_all(configs, sort_keys=False, allow_unicode=True)


def _inputs(plan: Plan) -> list[Model]:
    """The models that were there before the merge, each once: not what its stages gave."""
    written = {stage.name for stage in plan.before}
    models = (model for stage in (*plan.before, plan) for model in stage.models)
    return list({m.name: m for m in models if ModelReference.parse(m.name).path not in written}.values())


def escaped(text: str) -> str:
    """Text on one line, of which nothing is Markdown or HTML."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _MARKUP.sub(lambda match: "\\" + match[0], html.escape(plain, quote=False))


def fenced(text: str) -> str:
    """A block of YAML, in a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}\n"
