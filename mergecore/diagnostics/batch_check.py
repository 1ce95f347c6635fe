"""Does a GPU give the bits of the CPU for many small tensors in one launch?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from mergecore.diagnostics.devices import used_alone
from mergecore.diagnostics.kernel_check import KernelCheck, anonymous
from mergecore_kernels import torch_ops
from mergecore_kernels.cases import (
    OPERATIONS,
    Case,
    Data,
    Operation,
    Ops,
    Size,
    difference,
    make_data,
    new_workspace,
    part_of,
    run_batch,
    run_case,
)
from mergecore_kernels.operations import CHUNK

LENGTHS = (1, 2, 15, 16, 17, 1000, 2047, 2048, 2049, 4096, 11_008, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
"""Elements of the tensors of a batch: around all sizes where kernels change their way."""
MODELS = 3


def check_batches(kernels: Ops, device: torch.device) -> Iterator[KernelCheck]:
    """One check per operation, of bfloat16 tensors; every second one has a float32 base."""
    for operation in OPERATIONS.values():
        with used_alone(device):
            check = _check(operation, kernels, device)
        yield check


def _check(operation: Operation, kernels: Ops, device: torch.device) -> KernelCheck:
    models = 1 if operation.single else MODELS
    try:
        problems = tuple(_problems(operation, models, kernels, device))
    except Exception as error:  # as in kernel_check: the others are still looked at
        problems = (anonymous(f"{type(error).__name__}: {error}"),)
    return KernelCheck(operation.name, "bf16", models, "batch", False, problems, None, None)


def _problems(operation: Operation, models: int, kernels: Ops, device: torch.device) -> Iterator[str]:
    batch = list(_batch(operation, models, device))
    results = run_batch(kernels, batch, new_workspace(device))
    for data, got in zip(batch, results, strict=True):
        alone = part_of(data, 0, data.n, "cpu")
        if problem := difference(got, run_case(torch_ops, alone, new_workspace("cpu"))):
            yield f"triton on the GPU, the tensor of {data.n} elements: {problem}"


def _batch(operation: Operation, models: int, device: torch.device) -> Iterator[Data]:
    for number, n in enumerate(LENGTHS):
        data = make_data(Case(operation, "bf16", models, Size(f"{n}", (n,), "a part of a batch")), device)
        if data.base is not None and number % 2:
            data = replace(data, base=data.base.float())
        yield data
