"""What a merge is planned by, beside its config."""

from __future__ import annotations

from dataclasses import dataclass

from mergecore.checkpoint.recognition import ALL


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """The options of a command, or the arguments of a call, that a plan depends on."""

    seed: int | None = None
    """For the methods with random numbers; None draws one."""
    shard_bytes: int = 5_000_000_000
    """Of a file of weights, at most, unless one tensor is larger."""
    allow_crimes: bool = False
    """Models of different architectures may be merged, by the definition of the first."""
    tensors: str = ALL
    """Which tensors are merged of models that have no architecture: all, common, any."""
    truncate_embeddings: bool = False
    """Vocabularies of different sizes are cut to the rows that all models have, if the config doesn't say how to merge
    them."""
