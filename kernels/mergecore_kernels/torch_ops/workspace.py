"""Scratch memory that is used again from tile to tile: fresh pages cost more than the arithmetic on them."""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.torch_ops.kept_bits import KeptBits


class Workspace:
    """Named scratch buffers on one device, for one thread.

    What an operation leaves in a buffer means nothing to the next one.
    """

    def __init__(self, device: torch.device | str, budget_bytes: int, *, use_numpy: bool | None = None) -> None:
        """`budget_bytes` bounds what an operation may hold beside its tile-sized buffers.

        On a CPU some steps are done by numpy on the tensors' memory, which has faster comparisons and selection.
        `use_numpy=False` does them in torch, as on any other device; the bits are the same.
        """
        self.device = torch.device(device)
        self.budget_bytes = budget_bytes
        self.use_numpy = self.device.type == "cpu" if use_numpy is None else use_numpy
        self.kept_bits = KeptBits()
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        """[n] the first n elements of the buffer `name`, which grows as needed. Its contents are arbitrary."""
        held = self._buffers.get((name, dtype))
        if held is None or held.numel() < n:
            # The old buffer goes first, so that both are never held at once.
            self._buffers.pop((name, dtype), None)
            del held
            held = self._buffers[name, dtype] = torch.empty(n, dtype=dtype, device=self.device)
        return held if held.numel() == n else held[:n]
