"""The merge methods, one file each. A file that is put into this folder is a method that is known.

They are loaded when they are asked for: a worker waits for its own method only.
"""

from mergecore.methods.method import Method, Parameter, Params, Pass, PerInput, PerTask, Recipe, Scope, Survey, Target
from mergecore.methods.registry import get, method, names

__all__ = [
    "Method", "Parameter", "Params", "Pass", "PerInput", "PerTask", "Recipe", "Scope", "Survey", "Target", "get",
    "method", "names",
]  # fmt: skip
