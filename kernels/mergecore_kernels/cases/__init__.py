"""The operations on tensors of real sizes: what benchmarks time and what is checked on a user's machine.

A `Case` names operation, dtype, number of models and size. `make_data` gives its tensors, the same on every machine;
`run_case` does it with one of the backends; `problem_of` compares the result with float64 and `difference` with
another backend's, bit for bit; `median_seconds` times it. The backend is a module given by the caller, so nothing here
imports triton.
"""

from __future__ import annotations

from mergecore_kernels.cases.bits import difference
from mergecore_kernels.cases.by_hand import BY_HAND
from mergecore_kernels.cases.case import DTYPES, Case, select_cases
from mergecore_kernels.cases.catalogue import OPERATIONS, Operation
from mergecore_kernels.cases.data import Data, make_data, part_of
from mergecore_kernels.cases.memory import free_bytes
from mergecore_kernels.cases.reference import problem_of
from mergecore_kernels.cases.running import Ops, new_workspace, run_batch, run_case
from mergecore_kernels.cases.sizes import SIZES, Size
from mergecore_kernels.cases.timing import copy_seconds, median_seconds

__all__ = [
    "BY_HAND",
    "DTYPES",
    "OPERATIONS",
    "SIZES",
    "Case",
    "Data",
    "Operation",
    "Ops",
    "Size",
    "copy_seconds",
    "difference",
    "free_bytes",
    "make_data",
    "median_seconds",
    "new_workspace",
    "part_of",
    "problem_of",
    "run_batch",
    "run_case",
    "select_cases",
]
