"""mergecore merges the weights of language models.

>>> import mergecore
>>> mergecore.plan("ties.yml")
>>> mergecore.merge("ties.yml", "merged/")
"""

from mergecore.api import Result, merge, plan
from mergecore.errors import CheckpointError, ConfigError, MergeError, PlanError, Problem, RunError

__all__ = [
    "CheckpointError", "ConfigError", "MergeError", "PlanError", "Problem", "Result", "RunError", "merge", "plan",
]  # fmt: skip
__version__ = "0.1.0"
