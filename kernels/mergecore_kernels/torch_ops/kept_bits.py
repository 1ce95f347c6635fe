"""What masks keep, a bit for each element: found out when a tensor is measured, used again when it's combined.

To unpack a bit costs a tenth of hashing an element, and less still of ranking it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Drop, Mask, RankedDrop, Trim


class PackedFlags:
    """Flags of a tensor's elements, from the first one on."""

    def __init__(self) -> None:
        self.end = 0
        """How many there are."""
        self._bits = bytearray()

    @property
    def n_bytes(self) -> int:
        return len(self._bits)

    def append(self, flags: NDArray[np.bool_]) -> None:
        """[n] those of the next elements. After a number that isn't a multiple of 8 nothing can follow."""
        assert self.end % 8 == 0, "the last byte is incomplete"
        self._bits += np.packbits(flags).tobytes()
        self.end += len(flags)

    def read(self, start: int, n: int) -> NDArray[np.uint8]:
        """[n] 1 or 0 for the elements from `start`, a multiple of 8, on."""
        return np.unpackbits(self._at(start, n), count=n)

    def set(self, start: int, n: int, offsets: NDArray[np.integer]) -> None:
        """Raise the flags of the elements start + offsets, which lie among the n from `start` on."""
        flags = self.read(start, n)
        flags[offsets] = 1
        self._at(start, n)[:] = np.packbits(flags)

    def _at(self, start: int, n: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._bits, dtype=np.uint8, count=-(-n // 8), offset=start // 8)


class KeptBits:
    """What the masks keep that one tensor was measured with.

    A mask is known as the object that it is: what it keeps may depend on the tensor, so that of an equal mask is
    another matter.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Mask, PackedFlags]] = []
        self._room_bytes = 0

    def forget(self) -> None:
        """Another tensor comes."""
        self._known.clear()

    def begin(self, masks: Sequence[Mask], budget_bytes: int) -> None:
        """Remember what the random ones of these masks keep from now on, within so much memory, instead of others."""
        self._known = [(mask, flags) for mask, flags in self._known if isinstance(mask, Trim)]
        self._known += [(mask, PackedFlags()) for mask in masks if isinstance(mask, Drop | RankedDrop)]
        self._room_bytes = budget_bytes - sum(flags.n_bytes for _, flags in self._known)

    def learn(self, mask: Mask, flags: PackedFlags) -> None:
        """Remember what was found out about this mask."""
        self._known.append((mask, flags))

    def remember(self, mask: Mask, start: int, kept: Tensor) -> None:
        """bool [n]: what `mask` keeps from the element `start` on. Only what follows on what is there is taken."""
        flags, n = self._flags(mask), kept.numel()
        if flags is None or start != flags.end or start % 8 or n > 8 * self._room_bytes:
            return
        flags.append(kept.numpy())
        self._room_bytes -= -(-n // 8)

    def recall(self, mask: Mask, start: int, n: int) -> Tensor | None:
        """uint8 [n]: 1 where `mask` keeps an element from `start` on, else 0; None where that isn't known."""
        flags = self._flags(mask)
        if flags is None or n == 0 or start % 8 or start + n > flags.end:
            return None
        return torch.from_numpy(flags.read(start, n))

    def _flags(self, mask: Mask) -> PackedFlags | None:
        return next((flags for known, flags in self._known if known is mask), None)
