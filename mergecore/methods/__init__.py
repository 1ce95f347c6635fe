"""The merge methods, one file each. A file that is put into this folder is a method that is known."""

import importlib
import pkgutil

from mergecore.methods.method import Method, Parameter, Params, Pass, PerInput, PerTask, Recipe, Scope, Survey, Target
from mergecore.methods.registry import get, method, names

__all__ = [
    "Method", "Parameter", "Params", "Pass", "PerInput", "PerTask", "Recipe", "Scope", "Survey", "Target", "get",
    "method", "names",
]  # fmt: skip

for _module in pkgutil.iter_modules(__path__, __name__ + "."):
    importlib.import_module(_module.name)
