"""The plan of a config, whatever it describes: a merge or a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import OnDownload
from mergecore.config.load import AnyConfig
from mergecore.config.mixture import MixtureConfig
from mergecore.moe.build import build_mixture
from mergecore.plan.build import build
from mergecore.plan.models import NO_STAGES
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import Plan


def build_plan(
    config: AnyConfig,
    options: PlanOptions,
    *,
    stages: Mapping[str, Checkpoint] = NO_STAGES,
    on_download: OnDownload = lambda download: None,
) -> Plan:
    """For the arguments see `mergecore.plan.build.build`. Raises MergeError."""
    if isinstance(config, MixtureConfig):
        return build_mixture(config, options, stages=stages, on_download=on_download)
    return build(config, options, stages=stages, on_download=on_download)
