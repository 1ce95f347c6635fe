"""The plan of a config, whatever it describes: a merge or a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import OnDownload
from mergecore.checkpoint.recognition import ALL
from mergecore.config.load import AnyConfig
from mergecore.config.mixture import MixtureConfig
from mergecore.moe.build import build_mixture
from mergecore.plan.build import DEFAULT_SHARD_BYTES, build
from mergecore.plan.models import NO_STAGES
from mergecore.plan.plan import Plan


def build_plan(
    config: AnyConfig,
    *,
    seed: int | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_crimes: bool = False,
    tensors: str = ALL,
    truncate_embeddings: bool = False,
    stages: Mapping[str, Checkpoint] = NO_STAGES,
    on_download: OnDownload = lambda download: None,
) -> Plan:
    """For the arguments see `mergecore.plan.build.build`. Of a mixture all but the experts is the base model's, so
    `allow_crimes`, `tensors` and `truncate_embeddings` have nothing to say there. Raises MergeError.
    """
    if isinstance(config, MixtureConfig):
        return build_mixture(config, seed=seed, shard_bytes=shard_bytes, stages=stages, on_download=on_download)
    return build(
        config,
        seed=seed,
        shard_bytes=shard_bytes,
        allow_crimes=allow_crimes,
        tensors=tensors,
        truncate_embeddings=truncate_embeddings,
        stages=stages,
        on_download=on_download,
    )
