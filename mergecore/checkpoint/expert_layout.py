"""The two layouts of a mixture of experts: each expert with tensors of its own, or all of a layer stacked in one.

Separate: `experts.3.gate_proj.weight` [I, H], `experts.3.up_proj.weight` [I, H], `experts.3.down_proj.weight` [H, I].
Stacked, as transformers 5 has them: `experts.gate_up_proj` [E, 2I, H], in which each expert's gate lies above its up
projection, and `experts.down_proj` [E, H, I]. (E experts, I intermediate size, H hidden size.) So each expert's matrix
is a run of the stacked tensor, and a checkpoint in one layout can be read as if it had the other: nothing is copied.

gpt-oss and Llama 4 stack transposed matrices, [E, H, 2I], of which this isn't true. They have no other layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from mergecore.checkpoint.architecture import EXPERT, MOST_PARTS, Stacking
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.joined_tensors import InFiles, JoinedTensors
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError, PlanError

_Named: TypeAlias = tuple[str, InFiles]


class Layout(Enum):
    """Of experts. The value is what messages say of them."""

    SEPARATE = "separate"
    STACKED = "stacked"


def stack(experts: Sequence[Sequence[TensorRef]]) -> JoinedTensors:
    """The stacked tensor that experts make up, wherever they lie: each may be in another checkpoint.

    Shapes: [E][P] matrices [R, C] -> [E, P·R, C]. Of each expert, the P matrices that lie one above the other: gate and
    up for `gate_up_proj`, only down for `down_proj`. It is read like any tensor, so it can be the input of an output
    tensor that is copied (with no method) or merged. If matrices differ in type, it has one that holds all of them.
    """
    rows, columns = experts[0][0].shape
    shape = (len(experts), len(experts[0]) * rows, columns)
    return JoinedTensors.of([matrix for matrices in experts for matrix in matrices], shape)


def unstack(tensor: TensorRef, n_parts: int) -> list[list[TensorRef]]:
    """The matrices that a stacked tensor is made up of, where they lie in it.

    Shapes: [E, P·R, C] -> [E][P] matrices [R, C], with P = `n_parts`.
    """
    n_experts, all_rows, columns = tensor.shape
    rows = all_rows // n_parts
    of_expert, of_row, _ = tensor.strides or (all_rows * columns, columns, 1)

    def matrix(expert: int, part: int) -> TensorRef:
        first = expert * of_expert + part * rows * of_row
        return replace(
            tensor,
            offset_bytes=tensor.offset_bytes + first * tensor.dtype.size,
            shape=(rows, columns),
            strides=None if tensor.strides is None else tensor.strides[1:],
        )

    return [[matrix(expert, part) for part in range(n_parts)] for expert in range(n_experts)]


def layouts_of(model: Checkpoint, stackings: Sequence[Stacking]) -> set[Layout]:
    """Those that a model's experts have: none in a dense model, both if its layers differ."""
    of_experts = [stacking for stacking in stackings if stacking.of_experts]
    separate = [_numbered(part) for stacking in of_experts for part in stacking.parts]
    found: set[Layout] = set()
    for name in model.tensors:
        if any(_ends(name, stacking.name) for stacking in of_experts):
            found.add(Layout.STACKED)
        elif any(pattern.fullmatch(name) for pattern in separate):
            found.add(Layout.SEPARATE)
    return found


def in_layout(model: Checkpoint, layout: Layout, stackings: Sequence[Stacking]) -> Checkpoint:
    """The model as if all of its experts had this layout.

    Raises CheckpointError if experts don't make up a stacked tensor, or a stacked tensor isn't made up of experts, and
    PlanError where an adapter changes one of them.
    """
    convert = _separated if layout is Layout.SEPARATE else _stacked
    names = {name: _renamed(name, layout, stackings) for name in model.tensors}
    renamed = [(names[name], tensor) for name, tensor in model.tensors.items()]
    tensors: dict[str, InFiles] = {}
    for name, tensor in convert(model.folder, renamed, [s for s in stackings if s.of_experts]):
        if name in tensors:
            raise CheckpointError.at(model.folder, f"has `{name}` twice: for separate experts and for stacked ones")
        tensors[name] = tensor
    updates = {names[name]: update for name, update in model.updates.items()}
    for name in updates:
        if name not in tensors:
            raise PlanError.at(
                model.folder,
                f"`{name}` is changed by a LoRA adapter, so its experts can't be read as {layout.value} ones",
                "merge the adapter in a stage of its own before, with `merge_method: passthrough`",
            )
    return replace(model, tensors=tensors, updates=updates)


def _renamed(name: str, layout: Layout, stackings: Sequence[Stacking]) -> str:
    """What a tensor that isn't an expert's is called in a layout."""
    for stacking in stackings:
        if not stacking.of_experts:
            pair = (stacking.name, stacking.parts[0])
            old, new = pair if layout is Layout.SEPARATE else pair[::-1]
            if _ends(name, old):
                return name.removesuffix(old) + new
    return name


def _separated(folder: Path, tensors: Iterable[_Named], stackings: Sequence[Stacking]) -> Iterator[_Named]:
    for name, tensor in tensors:
        stacking = next((stacking for stacking in stackings if _ends(name, stacking.name)), None)
        if stacking is None:
            yield name, tensor
            continue
        n_parts = len(stacking.parts)
        if len(tensor.shape) != 3 or tensor.shape[0] > MOST_PARTS or tensor.shape[1] % n_parts:
            what = f"`{name}` is {list(tensor.shape)}, so it doesn't hold experts"
            rows = "rows" if n_parts == 1 else f"{n_parts} x rows"
            raise CheckpointError.at(folder, what, f"their shape is [experts, {rows}, columns]")
        assert isinstance(tensor, TensorRef)
        start = name.removesuffix(stacking.name)
        for expert, matrices in enumerate(unstack(tensor, n_parts)):
            for part, matrix in zip(stacking.parts, matrices, strict=True):
                yield start + part.replace(EXPERT, str(expert)), matrix


def _stacked(folder: Path, tensors: Iterable[_Named], stackings: Sequence[Stacking]) -> Iterator[_Named]:
    patterns = [(_numbered(part), stacking) for stacking in stackings for part in stacking.parts]
    separate: dict[str, InFiles] = {}
    counts: dict[tuple[str, Stacking], int] = {}
    for name, tensor in tensors:
        matches = ((pattern.fullmatch(name), stacking) for pattern, stacking in patterns)
        key = next(((m["start"], stacking, int(m["expert"])) for m, stacking in matches if m), None)
        if key is None:
            yield name, tensor
            continue
        separate[name] = tensor
        start, stacking, expert = key
        counts[start, stacking] = max(counts.get((start, stacking), 0), expert + 1)
    for (start, stacking), n_experts in counts.items():
        whole = start + stacking.name
        names = [[start + part.replace(EXPERT, str(i)) for part in stacking.parts] for i in range(n_experts)]
        yield whole, stack([[_matrix(folder, separate, name, names[0][0], whole) for name in of] for of in names])


def _matrix(folder: Path, tensors: Mapping[str, InFiles], name: str, first: str, whole: str) -> TensorRef:
    """A tensor of an expert, which must be a matrix of the same shape as the first one."""
    if name not in tensors:
        raise CheckpointError.at(folder, f"lacks the tensor `{name}`, which `{whole}` would be stacked from")
    tensor = tensors[name]
    if len(tensor.shape) != 2 or tensor.shape != tensors[first].shape or not tensor.n:
        what = f"`{name}` is {list(tensor.shape)}, so it can't be stacked with others in `{whole}`"
        raise CheckpointError.at(folder, what, "experts must be matrices of the same shape")
    assert isinstance(tensor, TensorRef)
    return tensor


def _ends(name: str, end: str) -> bool:
    """Whether these are the last parts of a name, or all of it."""
    return name == end or name.endswith(f".{end}")


def _numbered(part: str) -> re.Pattern[str]:
    """For the names of tensors of experts, with what comes before and the number of the expert."""
    before, after = map(re.escape, part.split(EXPERT))
    return re.compile(rf"(?P<start>|.*\.){before}(?P<expert>0|[1-9]\d{{0,4}}){after}")
