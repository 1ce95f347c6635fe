"""The cases that benchmarks and the doctor run, with the kernels in the interpreter: same bits as the torch twins."""

from __future__ import annotations

import pytest
import torch

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.cases import (
    OPERATIONS,
    Case,
    Operation,
    Size,
    difference,
    make_data,
    new_workspace,
    run_batch,
    run_case,
)
from mergecore_kernels.operations import CHUNK

SIZE = Size("a chunk and a bit", (CHUNK + 3001,), "")
SMALL = Size("a block and a bit", (3001,), "")
LENGTHS = (1, 17, 2049, 5000)
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)


@each_operation
@pytest.mark.parametrize(("dtype", "size"), [("bf16", SIZE), ("e4m3", SMALL), ("e5m2", SMALL)])
def test_odd_tensors(operation: Operation, dtype: str, size: Size) -> None:
    data = make_data(Case(operation, dtype, 1 if operation.single else 3, size, odd=True), "cpu")
    want = run_case(torch_ops, data, new_workspace("cpu"))
    if data.out is not None:
        want = want.clone()
        data.out.fill_(torch.nan)
    assert difference(run_case(triton_ops, data, new_workspace("cpu")), want) == ""


@each_operation
def test_batches(operation: Operation) -> None:
    models = 1 if operation.single else 2
    sizes = [Size(f"{n}", (n,), "") for n in LENGTHS]
    ours, theirs = ([make_data(Case(operation, "fp16", models, size), "cpu") for size in sizes] for _ in range(2))
    got = run_batch(triton_ops, ours, new_workspace("cpu"))
    want = run_batch(torch_ops, theirs, new_workspace("cpu"))
    assert [difference(a, b) for a, b in zip(got, want, strict=True)] == [""] * len(LENGTHS)
