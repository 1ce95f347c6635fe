"""mergecore merges the weights of language models.

>>> import mergecore
>>> mergecore.plan("ties.yml")
>>> mergecore.merge("ties.yml", "merged/")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergecore.errors import CheckpointError, ConfigError, MergeError, PlanError, Problem, RunError

if TYPE_CHECKING:
    from mergecore.adapters.extract import extract_lora
    from mergecore.adapters.merge import merge_lora
    from mergecore.api import Result, merge, plan, plan_stages, predict_time, verify
    from mergecore.in_memory import merge_state_dicts, merge_tensors
    from mergecore.release.push import Release, push
    from mergecore.stages import PlannedStage
    from mergecore.stream.pool import start_pool
    from mergecore.verification import Verification

__all__ = [
    "CheckpointError", "ConfigError", "MergeError", "PlanError", "PlannedStage", "Problem", "Release", "Result",
    "RunError", "Verification",
    "extract_lora", "merge", "merge_lora", "merge_state_dicts", "merge_tensors", "plan", "plan_stages", "predict_time",
    "push", "start_pool", "verify",
]  # fmt: skip
__version__ = "0.1.0"

_MODULES = {
    "adapters.extract": ("extract_lora",),
    "adapters.merge": ("merge_lora",),
    "api": ("Result", "merge", "plan", "plan_stages", "predict_time", "verify"),
    "in_memory": ("merge_state_dicts", "merge_tensors"),
    "release.push": ("Release", "push"),
    "stages": ("PlannedStage",),
    "stream.pool": ("start_pool",),
    "verification": ("Verification",),
}
"""What is loaded when it is first used. So a worker process, or who starts one, waits for what it needs and no more."""

# The folder `plan` has the name of a function. It is loaded here, once, or it would take the function's place later.
import_module("mergecore.plan")
globals().pop("plan")


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"mergecore.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
