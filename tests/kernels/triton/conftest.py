"""Triton's interpreter, with its rounding put right, and tensors whose surroundings are watched.

The interpreter shows that a kernel's arithmetic and indexing are those of its torch twin. What it can't show, the
compiled code does: see test_compiled.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

if find_spec("triton") is None:
    # There is none for this platform. The modules of this folder import it.
    collect_ignore_glob = ["test_*.py"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ZONE = 64
"""Elements before and after a guarded tensor: a multiple of 16 bytes for every dtype."""
Guarded = Callable[..., Tensor]
SameBits = Callable[[Tensor, Tensor], None]


@pytest.fixture(autouse=True, scope="session")
def rounding_interpreter() -> Iterator[None]:
    """The interpreter cuts float32 off to bfloat16, and is wrong for subnormals; torch rounds to nearest even.

    test_interpreter.py fails if this has no effect any more.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    torch_dtypes = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16}
    unpatched = interpreter._convert_float

    def convert(values: NDArray[Any], source: Any, target: Any, rounding: Any) -> NDArray[Any]:
        if source not in torch_dtypes or target not in torch_dtypes:
            return unpatched(values, source, target, rounding)
        bits = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(f"int{source.primitive_bitwidth}"))
        cast = bits.view(torch_dtypes[source]).to(torch_dtypes[target])
        words = cast.view(INTEGERS[target.primitive_bitwidth // 8]).numpy()
        return words.view(f"uint{target.primitive_bitwidth}").reshape(values.shape)

    interpreter._convert_float = convert
    with np.errstate(all="ignore"):  # overflow gives Inf, as on a GPU
        yield
    interpreter._convert_float = unpatched


@pytest.fixture(autouse=True, scope="session")
def quick_exclusive_or() -> Iterator[None]:
    """A sort is made of sums by exclusive or, which the interpreter does element by element."""
    import triton.language as tl
    from triton.runtime import interpreter

    unpatched = interpreter.ReduceOps.apply_impl

    def apply(reduction: Any, values: Any) -> Any:
        if reduction.combine_fn is not tl.standard._xor_combine:
            return unpatched(reduction, values)
        (x,) = values
        result = np.bitwise_xor.reduce(x.handle.data, axis=reduction.axis, keepdims=reduction.keep_dims)
        return (reduction.to_tensor(result, x.dtype),)

    interpreter.ReduceOps.apply_impl = apply
    yield
    interpreter.ReduceOps.apply_impl = unpatched


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """guarded(values, offset=0) -> a copy of the tensor inside a larger buffer, 64-byte aligned but for `offset`
    elements. At the end of the test what lies around it must be unchanged: a kernel that writes elsewhere is caught.
    """
    watched: list[tuple[Tensor, Tensor, int, int]] = []

    def guard(values: Tensor, offset: int = 0) -> Tensor:
        n = values.numel()
        buffer = torch.full((n + 2 * ZONE + offset,), 1.40625, dtype=values.dtype)
        assert buffer.data_ptr() % 64 == 0
        size, raw = buffer.itemsize, buffer.view(torch.uint8)
        watched.append((raw, raw.clone(), (ZONE + offset) * size, n * size))
        inside = buffer[ZONE + offset : ZONE + offset + n]
        inside.copy_(values)
        return inside

    yield guard
    for buffer, before, at, n in watched:
        assert torch.equal(buffer[:at], before[:at]), "written before the tensor"
        assert torch.equal(buffer[at + n :], before[at + n :]), "written after the tensor"


@pytest.fixture(scope="session")
def same_bits() -> SameBits:
    """same_bits(got, want): the same dtype, shape and bits; of a NaN, that it is one."""

    def check(got: Tensor, want: Tensor) -> None:
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        integers = INTEGERS[got.element_size()]
        differ = (got.view(integers) != want.view(integers)) & ~(got.isnan() & want.isnan())
        where = differ.nonzero().flatten().tolist()
        assert not where, f"{len(where)} differ, first at {where[0]}: {got[where[0]]} instead of {want[where[0]]}"

    return check


@pytest.fixture(scope="session")
def special_values() -> Callable[[Tensor, Sequence[int]], Tensor]:
    """special_values(x, places) -> x with NaN, Inf, -Inf, -0, a subnormal and the largest number at these places."""

    def put(x: Tensor, places: Sequence[int]) -> Tensor:
        limits = torch.finfo(x.dtype)
        values = [float("nan"), float("inf"), -float("inf"), -0.0, limits.smallest_normal / 4, limits.max]
        x = x.clone()
        for value, place in zip(values, places, strict=False):
            if place < x.numel():
                x[place] = value
        return x

    return put
