"""The cases: their data, what they say of themselves, and that the check of a result can fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergecore_kernels import torch_ops
from mergecore_kernels.cases import (
    BY_HAND,
    DTYPES,
    OPERATIONS,
    SIZES,
    Case,
    Data,
    Size,
    data,
    difference,
    make_data,
    new_workspace,
    part_of,
    problem_of,
    run_case,
    select_cases,
)
from mergecore_kernels.operations import CHUNK, Trim

SMALL = SIZES["small"]
KNOWN = ["-0x1.b99de80000000p-7", "0x1.589ca60000000p-5"]
"""The first two elements of the first model in float32."""


def case_of(operation: str, dtype: str = "bf16", models: int = 3, size: Size = SMALL, odd: bool = False) -> Case:
    return Case(OPERATIONS[operation], dtype, models, size, odd)


def made(operation: str, **choices: Any) -> Data:
    return make_data(case_of(operation, **choices), "cpu")


def result_of(data: Data) -> Any:
    return run_case(torch_ops, data, new_workspace("cpu"))


def small_cases() -> list[Case]:
    return list(select_cases(OPERATIONS, DTYPES, (1, 3), ("small",)))


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_the_torch_twin_is_right(case: Case) -> None:
    data = make_data(case, "cpu")
    assert problem_of(data, result_of(data)) == ""


def test_many_models_are_right() -> None:
    for name in ("weighted_deltas", "gram_deltas", "ties", "dare_ties"):
        data = made(name, models=8)
        assert problem_of(data, result_of(data)) == ""


def broken(result: Any) -> Any:
    """A result that is wrong at its end, or in its last number, by a per cent of its size."""
    if isinstance(result, Tensor):
        result[-1] += 0.01 * result.abs().max()
        return result
    if isinstance(result, int):
        return result + 1
    if isinstance(result, Trim):
        return replace(result, magnitude=result.magnitude * 1.01)
    last = result[-1]
    if isinstance(last, np.ndarray):
        last[-1] *= 1.01
        return result
    if isinstance(last, dict):
        last[max(last)] += 1
        return result
    if isinstance(last, list) and isinstance(last[-1], np.ndarray):
        last[-1][-1] *= 1.01
        return result
    if isinstance(last, Trim):
        return (*result[:-1], replace(last, magnitude=last.magnitude * 1.01))
    if isinstance(last, float):
        return [*result[:-1], last * 1.01]
    return [*result[:-1], [*last[:-1], last[-1] * 2]]


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("copy", r"element 204804 is .*, not .* \(± "),
        ("nonfinite", "1 elements are said to be NaN or Inf, 0 are"),
        ("weighted_sum", "element 204804 is "),
        ("weighted_deltas", "element 204804 is "),
        ("gram", "the product of 2 and 2 is "),
        ("gram_deltas", "the product of 2 and 2 is "),
        ("gram_rows", "the product of 2 and 2 in row 4 is "),
        ("gram_columns", "the product of 2 and 2 in column 40960 is "),
        ("weighted_rows", "element 204804 is "),
        ("weighted_columns", "element 204804 is "),
        ("kth_magnitudes", "of delta 2, .* are above .* equal, for k = 102402"),
        ("magnitude_counts", r"of delta 2, \d+ elements are said to have the bits \d+, \d+ have them"),
        ("magnitude_low_counts", r"of delta 2, \d+ elements are said to have the bits \d+, \d+ have them"),
        ("magnitude_sums", "of the magnitudes of delta 2, .* is kept of "),
        ("ties", "element 204804 is "),
        ("breadcrumbs", "element 204804 is "),
        ("dare_ties", "element 204804 is "),
        ("della", "element 204804 is "),
        ("dare_linear", "element 204804 is "),
        ("largest_variances", "of the squared deviations, .* are above .* and .* equal, for k = "),
        ("energies", "the energy of delta 2 is "),
        ("overlap_counts", "of delta 2, .* elements are said to be shared and .* unique, not "),
        ("selective_consensus", "element 204804 is "),
        ("overlap_mean", "element 204804 is "),
        ("importance_quantiles", "the divergence of row 4 is "),
        ("take_important", "element 204804 is "),
        ("nearswap", "element 204804 is "),
    ],
)
def test_a_wrong_result_is_found(operation: str, message: str) -> None:
    data = made(operation, models=1 if OPERATIONS[operation].single else 3)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem_of(data, broken(result_of(data))))


def test_a_wrong_sum_or_hash_cut_is_found() -> None:
    data = made("magnitude_sums", models=1)
    ((before, after),) = result_of(data)
    assert "have the sum" in problem_of(data, [(before * 1.0001, after)])
    data = made("kth_magnitudes", models=1)
    (trim,) = result_of(data)
    wrong = replace(trim, hash_cut=(trim.hash_cut + (1 << 31)) % (1 << 32))
    assert "the hash keeps" in problem_of(data, (wrong,))


def test_a_selection_where_nothing_varies_must_be_empty() -> None:
    data = made("largest_variances", models=1)
    selection = result_of(data)
    assert problem_of(data, selection) == ""
    assert "but no element varies" in problem_of(data, replace(selection, magnitude=1.0))


def test_float64_is_held_to_its_own_precision() -> None:
    """What float32 would give is wrong."""
    for operation in ("weighted_sum", "weighted_deltas", "dare_ties", "gram"):
        data = made(operation, dtype="fp64")
        assert data.inputs[0].float().double().ne(data.inputs[0]).any()
        less = replace(data, inputs=tuple(x.float().double() for x in data.inputs))
        assert problem_of(data, result_of(data)) == ""
        assert problem_of(data, result_of(less)) != ""


def test_a_wrong_quantile_is_found() -> None:
    data = made("importance_quantiles", models=1)
    quantiles, divergences = result_of(data)
    wrong = (*quantiles[:2], quantiles[2] * 1.01), divergences
    assert "of the importances, not at 153603" in problem_of(data, wrong)


def test_nan_in_a_result_is_found() -> None:
    """So is an element that was not written, as `out` is filled with NaN."""
    data = made("weighted_sum")
    assert data.out is not None
    assert torch.isnan(data.out).all()
    assert "is nan, not" in problem_of(data, data.out)
    gram = made("gram")
    assert problem_of(gram, [[torch.nan] * 3] * 3).startswith("the product of 0 and 0 is nan")


@pytest.mark.parametrize(
    "operation",
    [
        "copy", "nonfinite", "weighted_sum", "weighted_deltas", "weighted_rows", "weighted_columns", "overlap_counts",
        "take_important",
    ],
)  # fmt: skip
def test_what_is_written_by_hand_gives_the_same(operation: str) -> None:
    data = made(operation, models=1 if OPERATIONS[operation].single else 3, dtype="fp32")
    before = [x.clone() for x in data.inputs]
    assert problem_of(data, BY_HAND[operation](data)) == ""
    assert all(torch.equal(x, y) for x, y in zip(data.inputs, before, strict=True))


def test_what_is_written_by_hand_gives_nearly_the_same() -> None:
    """Equal magnitudes and random masks are its own, sums are less exact."""
    for operation in (
        "ties",
        "breadcrumbs",
        "dare_ties",
        "della",
        "dare_linear",
        "selective_consensus",
        "overlap_mean",
    ):
        data = made(operation, dtype="fp32")
        merged, ours = BY_HAND[operation](data), result_of(data)
        assert isinstance(merged, Tensor)
        assert data.base is not None
        moved = [float((x - data.base).norm()) for x in (merged, ours)]
        assert moved[0] == pytest.approx(moved[1], rel=0.02)
    for operation in ("gram", "gram_deltas"):
        data = made(operation)
        torch.testing.assert_close(BY_HAND[operation](data), torch.tensor(result_of(data)), rtol=1e-3, atol=0.1)
    for operation in ("gram_rows", "gram_columns"):
        data = made(operation)
        want = torch.from_numpy(np.array(result_of(data)))
        torch.testing.assert_close(BY_HAND[operation](data), want, rtol=1e-3, atol=1e-5, check_dtype=False)
    important = made("importance_quantiles", models=1, dtype="fp32")
    assert BY_HAND["importance_quantiles"](important) == pytest.approx(result_of(important)[0], rel=0.05)
    swapped = made("nearswap", models=1, dtype="fp32")
    torch.testing.assert_close(BY_HAND["nearswap"](swapped), result_of(swapped), rtol=1e-5, atol=1e-8)
    varying = made("largest_variances", dtype="fp32")
    assert BY_HAND["largest_variances"](varying) == pytest.approx(result_of(varying).magnitude, rel=1e-5)
    energies = made("energies")
    assert BY_HAND["energies"](energies) == pytest.approx(result_of(energies), rel=0.02)
    for operation in ("magnitude_counts", "magnitude_low_counts"):
        data = made(operation)
        counted: Any = BY_HAND[operation](data)
        for by_hand, ours in zip(counted, result_of(data), strict=True):
            assert {bits: n for bits, n in enumerate(by_hand.tolist()) if n} == ours
    data, sums = made("magnitude_sums"), made("kth_magnitudes", dtype="fp32")
    for ours, theirs in zip(result_of(data), BY_HAND["magnitude_sums"](data), strict=True):  # type: ignore[call-overload]
        assert theirs == pytest.approx(ours, rel=0.02)
    assert BY_HAND["kth_magnitudes"](sums) == [trim.magnitude for trim in result_of(sums)]


def test_data_is_the_same_every_time_and_unlike_between_models() -> None:
    one, two = made("ties"), made("ties")
    assert all(torch.equal(x, y) for x, y in zip(one.inputs, two.inputs, strict=True))
    assert one.spec == two.spec
    assert not torch.equal(one.inputs[0], one.inputs[1])


def test_data_looks_like_weights_and_has_known_bits() -> None:
    """The bits are those of integers, so no machine has others."""
    x = made("copy", models=1, dtype="fp32")
    (values,) = x.inputs
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std()) == pytest.approx(0.02, rel=0.01)
    assert [value.hex() for value in values[:2].tolist()] == KNOWN


def test_long_tensors_repeat_a_prime_number_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PERIOD", 1009)
    (x,) = made("copy", models=1, size=Size("long", (5000,), "")).inputs
    assert torch.equal(x[:1009], x[1009:2018])
    assert torch.equal(x[4036:], x[: 5000 - 4036])


@pytest.mark.parametrize("operation", ["ties", "gram"])
def test_odd_data_is_unaligned_and_has_rare_values(operation: str) -> None:
    data = made(operation, odd=True)
    for x in data.inputs:
        assert x.numel() == SMALL.n
        assert x.data_ptr() % 16 == x.itemsize
        assert bool((x == 0).any())
        assert bool(((x != 0) & (x.abs() < torch.finfo(x.dtype).smallest_normal)).any())
        assert bool(torch.isnan(x).any()) == (operation == "ties")
        assert bool(torch.isinf(x).any()) == (operation == "ties")


def test_a_part_is_the_same_elements() -> None:
    data = made("ties")
    whole = result_of(data)
    part = part_of(data, 2 * CHUNK, CHUNK + 5, "cpu")
    assert difference(result_of(part), whole[2 * CHUNK : 3 * CHUNK + 5]) == ""


def test_a_case_says_what_it_moves() -> None:
    case = case_of("ties", models=3, size=SIZES["q_proj"])
    assert case.name == "ties bf16 M=3 q_proj"
    assert replace(case, odd=True).name == "ties bf16 M=3 q_proj odd"
    assert case.bytes_moved == (3 + 1 + 1) * 4096 * 4096 * 2
    assert case_of("gram", models=2).bytes_moved == 2 * SMALL.n * 2
    assert case.memory_bytes > case.bytes_moved
    assert case.by_hand_bytes > case.memory_bytes
    assert case_of("weighted_sum", models=2).steps_per_byte == 3 / 6


def test_sizes_are_those_of_real_tensors() -> None:
    assert SIZES["embedding"].n == 525_336_576
    assert SIZES["large_experts"].n > 2**31
    assert len({size.name for size in SIZES.values()}) == len(SIZES)
    assert set(BY_HAND) == set(OPERATIONS)


def test_operations_of_one_input_are_selected_once() -> None:
    cases = list(select_cases(("copy", "ties"), ("bf16",), (2, 3), ("small", "q_proj")))
    assert [case.name for case in cases] == [
        "copy bf16 M=1 small", "ties bf16 M=2 small", "ties bf16 M=3 small",
        "copy bf16 M=1 q_proj", "ties bf16 M=2 q_proj", "ties bf16 M=3 q_proj",
    ]  # fmt: skip


def test_cases_import_no_triton() -> None:
    code = "import sys, mergecore_kernels.cases; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
