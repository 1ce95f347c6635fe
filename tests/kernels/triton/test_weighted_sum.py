"""Weighted sums and copies: the kernel gives the bits of its torch twin."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergecore_kernels import torch_ops, triton_ops
from mergecore_kernels.operations import Copy, WeightedColumns, WeightedRows, WeightedSum
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.triton_ops import weighted_sum
from mergecore_kernels.triton_ops.launch_table import BLOCK

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SIZES = [0, 1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 100]
ACROSS_EXAMPLES = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the fixtures used have nothing to reset between examples


@pytest.fixture
def workspace():
    return Workspace("cpu", 1 << 20, use_numpy=False)


def drawn(n, dtype, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@st.composite
def jobs(draw):
    """A spec and the description of its tensors: (dtype, offset in elements) of out, base (or None) and inputs."""
    offset = st.sampled_from([0, 0, 1])
    out = tensor = st.tuples(st.sampled_from([BF16, F16, F32]), offset)
    tensor |= st.tuples(st.sampled_from(FLOAT8), offset)
    if draw(st.booleans()):
        tensor = st.just(draw(tensor))  # all alike, as is usual
    inputs = draw(st.lists(tensor, min_size=1, max_size=6))
    weight = st.floats(-4, 4, width=64) | st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e-30])
    weights = draw(st.lists(weight, min_size=len(inputs), max_size=len(inputs)))
    base = draw(st.none() | tensor)
    copied = len(inputs) == 1 and base is None and draw(st.booleans())
    n, special = draw(st.sampled_from(SIZES) | st.integers(0, 3 * BLOCK)), draw(st.booleans())
    return Copy() if copied else WeightedSum(tuple(weights)), n, draw(out), base, inputs, special


def tensors_of(job, guarded, special_values):
    _, n, (out_dtype, out_offset), base, inputs, special = job

    def make(seed, dtype, offset):
        x = drawn(n, dtype, seed)
        return guarded(special_values(x, range(seed, n, 7)) if special else x, offset)

    tile = Tile(0, [make(i, *x) for i, x in enumerate(inputs)], None if base is None else make(99, *base), F32)
    return tile, guarded(torch.full((n,), float("nan"), dtype=out_dtype), out_offset)


@ACROSS_EXAMPLES
@given(batch=st.lists(jobs(), min_size=1, max_size=4))
def test_bits_of_the_twin(workspace, guarded, same_bits, special_values, batch):
    made = [(job[0], *tensors_of(job, guarded, special_values)) for job in batch]
    triton_ops.combine_batch(made, workspace)
    for spec, tile, out in made:
        want = torch.empty_like(out)
        torch_ops.combine(spec, tile, want, workspace)
        same_bits(out, want)


@pytest.mark.parametrize("m", [1, 2, 8, 16, 17, 32])
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def test_any_number_of_models(workspace, same_bits, m, deltas):
    n = BLOCK + 3
    tile = Tile(0, [drawn(n, BF16, i) for i in range(m)], drawn(n, BF16, 99) if deltas else None, F32)
    spec = WeightedSum(tuple(0.3 * (-1) ** i + i / 7 for i in range(m)))
    got, want = torch.empty(2, n, dtype=BF16)
    triton_ops.combine(spec, tile, got, workspace)
    torch_ops.combine(spec, tile, want, workspace)
    same_bits(got, want)


def test_tilings_give_the_same_bits(workspace, same_bits):
    n = CHUNK + 2 * BLOCK + 7
    base, a, b = (drawn(n, BF16, i) for i in range(3))
    spec = WeightedSum((0.7, -0.4))
    whole, cut = torch.empty(2, n, dtype=BF16)
    triton_ops.combine(spec, Tile(0, [a, b], base, F32), whole, workspace)
    tiles = [Tile(at, [a[at:][:CHUNK], b[at:][:CHUNK]], base[at:][:CHUNK], F32) for at in (0, CHUNK)]
    triton_ops.combine_batch([(spec, tile, cut[tile.start :][: len(tile)]) for tile in tiles], workspace)
    same_bits(cut, whole)


def test_float64_is_done_by_the_twin(workspace, same_bits):
    n = 1000
    tile = Tile(0, [drawn(n, F64, 0), drawn(n, BF16, 1)], None, F64)
    got, want = torch.empty(2, n, dtype=BF16)
    triton_ops.combine(WeightedSum((0.3, 0.4)), tile, got, workspace)
    torch_ops.combine(WeightedSum((0.3, 0.4)), tile, want, workspace)
    same_bits(got, want)


def test_float32_results_can_be_stored_as_float64(workspace, same_bits):
    n = 100
    tile = Tile(0, [drawn(n, BF16, 0), drawn(n, F32, 1)], None, F32)
    got, want = torch.empty(2, n, dtype=F64)
    triton_ops.combine(WeightedSum((0.3, 0.4)), tile, got, workspace)
    torch_ops.combine(WeightedSum((0.3, 0.4)), tile, want, workspace)
    same_bits(got, want)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_copies_keep_all_finite_bits(workspace, same_bits, dtype):
    bits = torch.arange(1 << 16, dtype=torch.int32)
    x = (bits << 16).view(F32) if dtype == F32 else bits.to(torch.int16).view(dtype)
    out = torch.empty_like(x)
    triton_ops.combine(Copy(), Tile(0, [x], None, F32), out, workspace)
    same_bits(out, x)


def vectors(kind, m, n, columns, seed):
    """A spec for a tensor of more than n elements, with normal weights."""
    length = -(-(n + 1) // columns) if kind is WeightedRows else columns
    return kind(tuple(drawn(length, F64, seed + i).numpy() for i in range(m)), columns)


@ACROSS_EXAMPLES
@given(
    kind=st.sampled_from([WeightedRows, WeightedColumns]),
    columns=st.sampled_from([1, 3, 64, 1000, BLOCK, BLOCK + 1, 3 * BLOCK]),
    m=st.integers(1, 4),
    start=st.sampled_from([0, CHUNK]),
    n=st.integers(0, 2 * BLOCK),
    deltas=st.booleans(),
)
def test_weights_of_rows_and_columns(workspace, guarded, same_bits, kind, columns, m, start, n, deltas):
    tile = Tile(start, [drawn(n, BF16, i) for i in range(m)], drawn(n, BF16, 9) if deltas else None, F32)
    spec = vectors(kind, m, start + n, columns, 10)
    got, want = guarded(torch.empty(n, dtype=BF16)), torch.empty(n, dtype=BF16)
    triton_ops.combine(spec, tile, got, workspace)
    torch_ops.combine(spec, tile, want, workspace)
    same_bits(got, want)


@pytest.mark.parametrize("kind", [WeightedRows, WeightedColumns])
def test_weights_of_rows_and_columns_in_a_batch(workspace, same_bits, monkeypatch, kind):
    launches = []
    kernel = weighted_sum._weighted_sum_kernel
    monkeypatch.setattr(weighted_sum, "_weighted_sum_kernel", Counted(kernel, launches))
    tiles = [Tile(0, [drawn(30, F32, 2 * i), drawn(30, F32, 2 * i + 1)], None, F32) for i in range(3)]
    jobs = [(vectors(kind, 2, 30, columns, columns), tile) for tile, columns in zip(tiles, (1, 10, 30), strict=True)]
    outs = [torch.empty(30) for _ in jobs]
    triton_ops.combine_batch([(*job, out) for job, out in zip(jobs, outs, strict=True)], workspace)
    assert launches == [(3,)]
    for job, got in zip(jobs, outs, strict=True):
        want = torch.empty(30)
        torch_ops.combine(*job, want, workspace)
        same_bits(got, want)


def test_copies_leave_the_base_alone(workspace, same_bits):
    x = drawn(100, F32, 0)
    got = torch.empty(100)
    for ops in (triton_ops, torch_ops):
        ops.combine(Copy(), Tile(0, [x], drawn(100, F32, 1) * 1e8, F32), got, workspace)
        same_bits(got, x)


def test_jobs_of_one_layout_share_a_launch(workspace, monkeypatch):
    launches = []
    kernel = weighted_sum._weighted_sum_kernel
    monkeypatch.setattr(weighted_sum, "_weighted_sum_kernel", Counted(kernel, launches))
    make = [(n, dtype) for n in (5, 100, BLOCK + 1) for dtype in (BF16, F32)]
    jobs = [(WeightedSum((0.5,)), Tile(0, [drawn(n, d, 0)], None, F32), torch.empty(n, dtype=d)) for n, d in make]
    triton_ops.combine_batch(jobs, workspace)
    assert launches == [(4,), (4,)]


class Counted:
    """A kernel whose grids are noted."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(grid)
        return self.kernel[grid]
