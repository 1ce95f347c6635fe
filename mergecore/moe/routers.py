"""Finds the gate vectors that a plan asks for, before the first tensor of it is merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergecore.errors import some_of
from mergecore.plan.gates import with_gates
from mergecore.plan.plan import Plan
from mergecore.stream.journal import Journal


def with_routers(
    plan: Plan, journal: Journal, device: str, on_progress: Callable[[int, int], None]
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the values of its gates, and what the user should know of them.

    They are recorded in the journal; a run that was interrupted goes on with those that it had found. Else `device` is
    where the base model is run, if it must be, and `on_progress` is told of how many layers so many are done. Raises
    MergeError.
    """
    assert plan.gates is not None
    if journal.history.survey is None:
        journal.add_survey(plan.gates.recorded(_values(plan, device, on_progress)))
    assert journal.history.survey is not None
    (recorded,) = journal.history.survey
    return with_gates(plan, recorded), _notes(plan, recorded)


def _values(plan: Plan, device: str, on_progress: Callable[[int, int], None]) -> bytes:
    """float32 [layers, experts, hidden]"""
    from mergecore.moe.gates import ExpertPrompts, gate_vectors  # only here, as it loads torch

    gates = plan.gates
    assert gates is not None
    values = gate_vectors(
        gates.mode,
        plan.models[plan.donor].folder,
        [ExpertPrompts(positive, negative) for positive, negative in gates.prompts],
        layers=gates.layers,
        hidden_size=gates.hidden_size,
        seed=plan.seed or 0,
        device=device.partition(",")[0],
        on_progress=on_progress,
    )
    data: bytes = values.numpy().tobytes()
    return data


def _notes(plan: Plan, recorded: Any) -> tuple[str, ...]:
    """Gates that are much alike: experts that will hardly be chosen, or all at once."""
    import torch

    from mergecore.moe.gates import ill_conditioned_layers

    gates = plan.gates
    assert gates is not None
    values = torch.frombuffer(bytearray(gates.values(recorded)), dtype=torch.float32)
    found = ill_conditioned_layers(values.view(gates.layers, -1, gates.hidden_size))
    if not found:
        return ()
    layers = some_of(map(str, found), 8)
    return (
        f"the gates of {len(found)} of {gates.layers} layers are much alike (condition number above 5), so that some "
        f"experts may hardly be used: layers {layers}",
    )
