"""Looks at all tensors before the first one is merged, for methods that have to know something of the whole model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mergecore import methods
from mergecore.errors import RunError
from mergecore.methods import Pass
from mergecore.plan.plan import Plan
from mergecore.stream.job import Job, OnProgress, Setup
from mergecore.stream.pool import Pool

SPAN = 1 << 24
"""Elements. The answers of a survey can be added, so that any tensor is split into jobs of this size."""


def survey(plan: Plan, setup: Setup, pool: Pool, on_progress: OnProgress) -> tuple[Any, int]:
    """What the method's survey finds, and the bytes that it read; None for a method without a survey."""
    method = methods.get(plan.method)
    if method.survey is None:
        return None, 0
    looks = method.survey([(tensor.params, tensor.target(setup.seed)) for tensor in plan.tensors if tensor.method])
    read_bytes = 0
    try:
        while True:
            look = next(looks)
            for outcome in pool.run(setup, _jobs(plan, look), on_progress):
                read_bytes += outcome.read_bytes
                assert outcome.job is not None
                look.add(outcome.job.tensor.target(setup.seed), outcome.answer)
    except StopIteration as end:
        return _plain(plan.method, end.value), read_bytes


def _plain(method: str, found: Any) -> Any:
    """As a journal gives it back to a run that goes on."""
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise RunError.at(method, f"its survey should give plain JSON data: {error}") from error


def _jobs(plan: Plan, look: Pass) -> Iterator[Job]:
    for tensor in plan.tensors:
        question = look.question(tensor.params, tensor.target(seed=0)) if tensor.method else None
        if question is not None:
            for start in range(0, tensor.n, SPAN):
                stop = min(start + SPAN, tensor.n)
                yield Job(tensor.within(start, stop), start, stop, question)
