"""README.md of the output: what was merged, how, and from what."""

from __future__ import annotations

import yaml

from mergecore import methods
from mergecore.plan.plan import Plan


def model_card(plan: Plan) -> str:
    """The card in the Hub's format: metadata, then text."""
    method = methods.get(plan.method)
    metadata = {
        "base_model": [model.name for model in plan.models],
        "library_name": "transformers",
        "tags": ["merge", "mergecore", plan.method],
    }
    models = "\n".join(f"- {model.name}" for model in plan.models)
    seed = "" if plan.seed is None else f"\n\nRandom seed: {plan.seed}"
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# A merge of {len(plan.models)} models\n\n"
        f"Merged with mergecore, method `{plan.method}`: {' '.join(method.doc.split())}\n\n"
        f"Source of the method: {method.paper}{seed}\n\n"
        f"## Models\n\n{models}\n\n"
        f"## Configuration\n\n```yaml\n{yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True)}```\n"
    )
