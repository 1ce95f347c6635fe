"""README.md of the output: what was merged, how, and from what."""

from __future__ import annotations

import yaml

from mergecore import methods
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.plan.plan import Model, Plan


def model_card(plan: Plan) -> str:
    """The card in the Hub's format: metadata, then text."""
    method = methods.get(plan.method)
    inputs = _inputs(plan)
    metadata = {
        "base_model": [_repository(model) for model in inputs],
        **({"library_name": "transformers"} if plan.donor_config else {}),
        "tags": ["merge", "mergecore", *dict.fromkeys(stage.method for stage in (plan, *plan.before))],
    }
    models = "\n".join(f"- {model.name}{f' (commit {model.commit})' if model.commit else ''}" for model in inputs)
    by_name = "" if plan.donor_config else "\n\nThere is no config.json: the tensors were merged by their names."
    seeds = {stage.seed for stage in (*plan.before, plan)} - {None}
    seed = f"\n\nRandom seed: {', '.join(map(str, seeds))}" if seeds else ""
    stages = f", the last of {len(plan.before) + 1} stages" if plan.before else ""
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# A merge of {len(inputs)} models\n\n"
        f"Merged with mergecore, method `{plan.method}`{stages}: {' '.join(method.doc.split())}\n\n"
        f"Source of the method: {method.paper}{seed}{by_name}\n\n"
        f"## Models\n\n{models}\n\n"
        f"## Configuration\n\n```yaml\n{config_text(plan)}```\n"
    )


def config_text(plan: Plan) -> str:
    """The resolved config, ready to be run again: a document for each stage."""
    configs = [stage.config for stage in (*plan.before, plan)]
    return yaml.safe_dump_all(configs, sort_keys=False, allow_unicode=True)


def _inputs(plan: Plan) -> list[Model]:
    """The models that were there before the merge, each once: not what its stages gave."""
    written = {stage.name for stage in plan.before}
    models = (model for stage in (*plan.before, plan) for model in stage.models)
    return list({m.name: m for m in models if ModelReference.parse(m.name).path not in written}.values())


def _repository(model: Model) -> str:
    """The model's name, without the revision if it is on the Hub."""
    return model.name if model.commit is None else ModelReference.parse(model.name).path
