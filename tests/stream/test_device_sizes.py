"""How a device's memory is divided, for tensors of any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore import PlanError, RunError
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.plan.plan import Input, OutputTensor
from mergecore.stream.device_sizes import DeviceSizes, least_device_memory
from mergecore.stream.job import Job
from mergecore.stream.layout import span_bytes
from mergecore_kernels.operations import CHUNK


def job_of(n: int, models: int) -> Job:
    inputs = tuple(Input(TensorRef(f"{i}", 0, Dtype.BF16, (n,)), "t", i) for i in range(models))
    tensor = OutputTensor(
        name="t", shape=(n,), dtype=Dtype.BF16, inputs=inputs, base=None, base_index=None, method="linear",
        params=None, double=False, measured=False, shard=0, offset_bytes=0,
    )  # fmt: skip
    return Job(tensor, 0, n)


jobs_of = st.lists(st.builds(job_of, st.integers(0, 1 << 33), st.integers(1, 6)), min_size=1, max_size=4)


@given(jobs_of, st.floats(1, 1000))
def test_the_frames_and_scratch_fit(jobs: list[Job], times: float) -> None:
    memory = int(least_device_memory([job.tensor for job in jobs]) * times) + 5
    sizes = DeviceSizes.within(memory, jobs)
    assert sizes.frames * sizes.frame_bytes + sizes.scratch_bytes <= memory * 4 / 5
    assert sizes.step % CHUNK == 0
    assert sizes.step > 0
    assert all(span_bytes(job.tensor, min(job.stop, CHUNK)) <= sizes.frame_bytes for job in jobs)


@given(jobs_of, st.floats(1, 1000))
def test_halving_ends(jobs: list[Job], times: float) -> None:
    sizes = DeviceSizes.within(int(least_device_memory([job.tensor for job in jobs]) * times) + 5, jobs)
    while sizes.step > CHUNK:
        smaller = sizes.halved("cuda:0")
        assert CHUNK <= smaller.step < sizes.step
        assert sizes.least_frame_bytes <= smaller.frame_bytes <= sizes.frame_bytes
        sizes = smaller
    with pytest.raises(RunError, match="--device: cuda:0 ran out of memory, even with the smallest tiles"):
        sizes.halved("cuda:0")


def test_a_small_merge_takes_little() -> None:
    sizes = DeviceSizes.within(1 << 36, [job_of(1000, 2)] * 3)
    assert sizes.frame_bytes == 3 * span_bytes(job_of(1000, 2).tensor, 1000)


def test_less_than_the_least() -> None:
    jobs = [job_of(1 << 20, 2)]
    least = least_device_memory([job.tensor for job in jobs])
    DeviceSizes.within(least, jobs)
    with pytest.raises(PlanError, match=r"--device-memory: .* MB is too little: at least [\d.]+ MB are needed"):
        DeviceSizes.within(least - 1, jobs)
