"""`difference`: bit for bit, but a NaN is a NaN and an Inf an Inf."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch

from mergecore_kernels.cases import bits, difference
from mergecore_kernels.operations import Key, Trim

KEY = Key("x")


def test_same_tensors() -> None:
    x = torch.tensor([1.0, nan, inf, 0.0])
    assert difference(x, x.clone()) == ""
    assert difference(torch.tensor([-nan, inf]), torch.tensor([nan, -inf])) == ""
    assert difference(torch.empty(0), torch.empty(0)) == ""


def test_a_bit_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "BLOCK", 3)
    got, want = torch.ones(8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    got[4] += 2.0**-7
    got[7] = 0
    message = (
        "2 of 8 elements differ: element 4 is 1.0078125 (0x1.0200000000000p+0) instead of 1 (0x1.0000000000000p+0)"
    )
    assert difference(got, want) == message


def test_signs_of_zeros_count() -> None:
    assert difference(torch.tensor([-0.0]), torch.tensor([0.0])).startswith("1 of 1 elements differ")
    assert difference([-0.0], [0.0]) == "number 0 is -0 (-0x0.0p+0) instead of 0 (0x0.0p+0)"


def test_nan_is_no_number_and_no_inf() -> None:
    assert difference(torch.tensor([nan]), torch.tensor([inf])) != ""
    assert difference([nan], [1.0]) != ""
    assert difference([nan, inf], [nan, -inf]) == ""


def test_shapes_and_dtypes() -> None:
    message = "torch.float32 (2,) instead of torch.float16 (2,)"
    assert difference(torch.zeros(2), torch.zeros(2, dtype=torch.float16)) == message


def test_measurements() -> None:
    trims = (Trim(0.5, 3, KEY), None)
    assert difference(trims, (Trim(0.5, 3, KEY), None)) == ""
    assert difference(trims, (Trim(0.5, 4, KEY), None)) == "number 1 is 3 instead of 4"
    assert difference([[1.0, 2.0]], [(1.0, 2.0)]) == ""
    assert difference([1.0], [1.0, 2.0]) == "1 numbers instead of 2"
    assert difference(3, 3) == ""
    assert difference(3, None) == "number 0 is 3 instead of None"
