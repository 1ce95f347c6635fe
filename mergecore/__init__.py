"""mergecore merges the weights of language models.

>>> import mergecore
>>> mergecore.plan("ties.yml")
>>> mergecore.merge("ties.yml", "merged/")
"""

from typing import TYPE_CHECKING, Any

from mergecore.api import Result, merge, plan, plan_stages, predict_time, verify
from mergecore.errors import CheckpointError, ConfigError, MergeError, PlanError, Problem, RunError
from mergecore.stages import PlannedStage
from mergecore.verification import Verification

if TYPE_CHECKING:
    from mergecore.in_memory import merge_state_dicts, merge_tensors

__all__ = [
    "CheckpointError", "ConfigError", "MergeError", "PlanError", "PlannedStage", "Problem", "Result", "RunError",
    "Verification",
    "merge", "merge_state_dicts", "merge_tensors", "plan", "plan_stages", "predict_time", "verify",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The calls that need torch load it when they are first used."""
    if name in ("merge_state_dicts", "merge_tensors"):
        from mergecore import in_memory

        return getattr(in_memory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
