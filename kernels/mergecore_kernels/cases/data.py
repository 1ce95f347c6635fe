"""The tensors of a case: a base, and fine-tunes of it, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels import torch_ops
from mergecore_kernels.cases.case import DTYPES, SCRATCH_BYTES, Case
from mergecore_kernels.cases.catalogue import Request, Spec
from mergecore_kernels.operations import CHUNK, Key, KthMagnitudes, Trim, row_length, whole_rows

PERIOD = 16_777_213
"""Longer tensors repeat their first elements. A prime, so that no power of two (of a wrong index) is a multiple."""
SPREADS = (0.0002, 0.0005, 0.002, 0.001)
"""Standard deviations of the deltas; the first, a light fine-tune, gives many equal ones in 16 bits."""
FINE = 2.0**-28
"""Share of a second number that is added in float64, so that its low bits aren't zero."""
COARSE = 64
"""How many times larger they are in float8, in whose steps most of the deltas would be zero."""
TILE = 4 * CHUNK
"""Elements of a tile on the CPU. A GPU gets the whole tensor at once."""
_STANDARD = 2.0**15 / 3**0.5 * 2  # the deviation of the sum of four numbers of 16 bits


@dataclass(frozen=True, slots=True)
class Data:
    """The tensors of a case on one device."""

    spec: Spec
    inputs: tuple[Tensor, ...]
    """M x [N]"""
    base: Tensor | None
    """[N] where the operation works on deltas."""
    out: Tensor | None
    """[N] where the operation gives a tensor; filled with NaN."""
    start: int = 0
    """Index in the tensor of the first element that is here; a multiple of CHUNK, or of a row's length."""

    @property
    def n(self) -> int:
        """Elements that are here."""
        return self.inputs[0].numel()

    @property
    def compute(self) -> torch.dtype:
        """Of the arithmetic."""
        return torch.float64 if self.inputs[0].dtype == torch.float64 else torch.float32

    @property
    def out_dtype(self) -> torch.dtype:
        """Where the operation gives a tensor."""
        assert self.out is not None, "it gives a few numbers"
        return self.out.dtype

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    def tiles(self) -> list[torch_ops.Tile]:
        """All elements, in order."""
        row = 1 if self.spec is None else row_length(self.spec)
        size = whole_rows(TILE, row) if self.device.type == "cpu" else max(self.n, 1)
        return [
            torch_ops.Tile(
                self.start + at,
                [x[at : at + size] for x in self.inputs],
                None if self.base is None else self.base[at : at + size],
                self.compute,
            )
            for at in range(0, self.n, size)
        ]


def make_data(case: Case, device: torch.device | str) -> Data:
    """The tensors of `case` on `device`, filled from numbers that are drawn on the CPU."""
    operation, dtype, n = case.operation, DTYPES[case.dtype], case.size.n
    place = partial(_place, n=n, device=torch.device(device), odd=case.odd)
    block = min(n, PERIOD)
    base = _block(block, 0, dtype)
    inputs = tuple(place(_block(block, i + 1, dtype)) for i in range(case.models))
    if case.odd:
        for x in inputs:
            _plant(x, finite=operation.sums)
    keys = tuple(Key.of("case", 0, "weight", i) for i in range(case.models))
    request = Request(case.models, n, case.size.shape[-1], keys, partial(_trims, block, dtype, keys))
    return Data(
        operation.make_spec(request),
        inputs,
        place(base) if operation.base else None,
        place(torch.full((1,), torch.nan, dtype=case.out_dtype)) if operation.writes else None,
    )


def part_of(data: Data, start: int, n: int, device: torch.device | str) -> Data:
    """The elements [start, start + n) on another device. `start` is as in `Data`."""
    piece = slice(start, start + n)
    inputs = tuple(x[piece].to(device) for x in data.inputs)
    base = None if data.base is None else data.base[piece].to(device)
    out = None if data.out is None else torch.full_like(inputs[0], torch.nan, dtype=data.out.dtype)
    return Data(data.spec, inputs, base, out, data.start + start)


def _place(block: Tensor, n: int, device: torch.device, odd: bool) -> Tensor:
    """[n] the block again and again; one element from an aligned address if `odd`."""
    x = torch.empty(n + odd, dtype=block.dtype, device=device)[int(odd) :]
    block = block.to(device)
    whole = n // len(block) * len(block)
    x[:whole].view(-1, len(block)).copy_(block)  # [repetitions, block]
    x[whole:] = block[: n - whole]
    return x


@lru_cache(maxsize=20)  # a base and 16 models: up to 1.3 GB in float32
def _block(n: int, index: int, dtype: torch.dtype) -> Tensor:
    """[n] the first elements of the base (index 0) or of a model, on the CPU."""
    values = _normal(n, 0) * 0.02
    if dtype == torch.float64:
        values = values.astype(np.float64) + _normal(n, index + PERIOD) * FINE
    if index:
        spread = SPREADS[(index - 1) % len(SPREADS)] * (COARSE if dtype.itemsize == 1 else 1)
        values += _normal(n, index) * spread
    return torch.from_numpy(values).to(dtype)


def _normal(n: int, seed: int) -> NDArray[np.float32]:
    """[n] nearly normal numbers, from integers alone: no library's logarithm has a say in their bits."""
    words = np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 16, size=(4, n), dtype=np.uint16)
    centred: NDArray[np.int32] = words.sum(axis=0, dtype=np.int32) - 2 * 0xFFFF
    return np.divide(centred, _STANDARD, dtype=np.float32)


def _plant(x: Tensor, finite: bool) -> None:
    """Rare values, at places that are all over the tensor and the same for all inputs."""
    info = torch.finfo(x.dtype)
    values = [0.0, -0.0, info.smallest_normal / 2, -info.smallest_normal / 4, info.tiny]
    if not finite:
        values += [torch.nan, torch.inf, -torch.inf, info.max, -info.max]
    step = max(x.numel() // 97, 1)
    places = torch.arange(0, x.numel(), step, device=x.device)
    x[places] = torch.tensor(values, dtype=x.dtype).to(x.device).repeat(len(places))[: len(places)]


@lru_cache(maxsize=20)
def _trims(n: int, dtype: torch.dtype, keys: tuple[Key, ...], share: float) -> tuple[Trim, ...]:
    """[M] trims that keep `share` of the first n elements of each delta, found by the torch twin on the CPU."""
    inputs = tuple(_block(n, i + 1, dtype) for i in range(len(keys)))
    spec = KthMagnitudes((int(n * share),) * len(keys), keys)
    data = Data(spec, inputs, _block(n, 0, dtype), None)
    workspace = torch_ops.Workspace("cpu", SCRATCH_BYTES)
    trims: tuple[Trim, ...] = torch_ops.measure(spec, data.tiles(), workspace)
    return trims
