"""Which elements come before a rank that is known only at the end of the pass that looks at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergecore_kernels.torch_ops.kept_bits import PackedFlags


class RankOrder:
    """What a sieve's pass tells of each element: that it comes before the interval, where in it, or after it."""

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._before = PackedFlags()
        self._inside: list[tuple[int, int, NDArray[np.int32], NDArray[np.int64]]] = []

    def add(self, start: int, before: NDArray[np.bool_], offsets: NDArray[np.intp], members: NDArray[np.int64]) -> None:
        """[n] flags of the elements from `start` on; which of them lie in the interval, and their composites."""
        self._room_bytes -= len(before) // 8 + 12 * len(members)
        if self._room_bytes < 0 or start != self._before.end or start % 8:
            self._room_bytes = -1
            self._inside.clear()
            return
        self._before.append(before)
        self._inside.append((start, len(before), offsets.astype(np.int32), members))

    def up_to(self, composite: int) -> PackedFlags | None:
        """Which elements have this composite, in the interval, or come before it. None where it took too much room."""
        if self._room_bytes < 0:
            return None
        for start, n, offsets, members in self._inside:
            self._before.set(start, n, offsets[members <= composite])
        return self._before
