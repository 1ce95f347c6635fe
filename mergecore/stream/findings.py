"""What is wrong with the values of a tensor: counts, and the errors that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from mergecore.checkpoint.joined_tensors import JoinedTensors
from mergecore.errors import RunError
from mergecore.plan.plan import Input, OutputTensor

Nonfinite: TypeAlias = tuple[tuple[str, str, int], ...]
"""(tensor, model, values that are NaN or infinite), where there are any."""


def nonfinite_sources(tensor: OutputTensor, counts: Sequence[int], model_names: Sequence[str]) -> Nonfinite:
    """From the counts of values that are NaN or infinite in each of the tensor's sources."""
    found = zip(tensor.sources, counts, strict=True)
    return tuple((source.tensor_name, _model_of(source, model_names), count) for source, count in found if count)


def _model_of(source: Input, model_names: Sequence[str]) -> str:
    """Of experts that are stacked in one tensor, the models that this part of it is made of."""
    parts = source.tensor.parts if isinstance(source.tensor, JoinedTensors) else ()
    folders = dict.fromkeys(str(Path(part.file).parent) for part in parts)
    return f"one of {', '.join(folders)}" if len(folders) > 1 else model_names[source.model]


def nonfinite_error(found: Sequence[tuple[str, str, int]]) -> RunError:
    """What to tell of values that are NaN or infinite, if they aren't allowed."""
    name, model, count = found[0]
    return RunError.at(
        model,
        f"`{name}` holds NaN or infinite values ({count} in the part that was read)",
        "the model is damaged or diverged; --allow-nonfinite merges it all the same",
    )


def difference_error(tensor: OutputTensor, other: Input, model_names: Sequence[str]) -> RunError:
    """What to tell where the inputs of a tensor that can only be copied differ."""
    return RunError.at(
        model_names[other.model],
        f"`{tensor.name}` is not floating point, so it can only be copied, but it differs from the one of "
        f"{model_names[tensor.inputs[0].model]}",
    )
