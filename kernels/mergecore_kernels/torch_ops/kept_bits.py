"""What random masks keep, a bit for each element: worked out when a tensor is measured, used again when it's combined.

To unpack a bit costs a tenth of hashing an element, and less still of ranking it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import Mask


class KeptBits:
    """The bits of the masks that one tensor was measured with.

    A mask is known as the object that it is, since what a `RankedDrop` keeps depends on the tensor too.
    """

    def __init__(self) -> None:
        self._masks: tuple[Mask, ...] = ()
        self._bits: list[bytearray] = []
        self._ends: list[int] = []  # elements whose bits are there
        self._room_bytes = 0

    def begin(self, masks: Sequence[Mask], budget_bytes: int) -> None:
        """Forget all, and remember what these masks keep, so far as it needs no more memory than this."""
        self._masks = tuple(masks)
        self._bits = [bytearray() for _ in masks]
        self._ends = [0] * len(masks)
        self._room_bytes = budget_bytes

    def remember(self, mask: Mask, start: int, kept: Tensor) -> None:
        """bool [n]: what `mask` keeps from the element `start` on. Only what follows on what is there is taken."""
        i = self._index(mask)
        n = kept.numel()
        if i is None or start != self._ends[i] or start % 8 or n > 8 * self._room_bytes:
            return
        bits = np.packbits(kept.numpy())
        self._bits[i] += memoryview(bits)
        self._ends[i] += n
        self._room_bytes -= len(bits)

    def recall(self, mask: Mask, start: int, n: int) -> Tensor | None:
        """uint8 [n]: 1 where `mask` keeps an element from `start` on, else 0; None where that isn't known."""
        i = self._index(mask)
        if i is None or n == 0 or start % 8 or start + n > self._ends[i]:
            return None
        bits = np.frombuffer(self._bits[i], dtype=np.uint8, count=-(-n // 8), offset=start // 8)
        return torch.from_numpy(np.unpackbits(bits, count=n))

    def _index(self, mask: Mask) -> int | None:
        return next((i for i, known in enumerate(self._masks) if known is mask), None)
