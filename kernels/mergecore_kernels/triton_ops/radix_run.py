"""The launches of a radix search: which passes there are, over which tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, KthMagnitudes
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import rounds
from mergecore_kernels.triton_ops.counter_hash import key_words
from mergecore_kernels.triton_ops.launch_table import (
    DTYPES,
    LaunchTable,
    Layout,
    grouped,
    launch_options,
    launch_table,
    to_device,
)
from mergecore_kernels.triton_ops.radix import INFINITY, NEXT, STATE, Radix
from mergecore_kernels.triton_ops.radix_count import count_kernel
from mergecore_kernels.triton_ops.radix_gather import gather_kernel
from mergecore_kernels.triton_ops.radix_picks import pick_kernel, select_kernel

BLOCK = 4096
"""Elements of a program of a pass. Its histogram is added to the one in global memory once."""

Job: TypeAlias = tuple[KthMagnitudes, Tiles]


@dataclass(frozen=True, slots=True)
class _Launch:
    """Tiles of one layout: what a kernel is given of them."""

    layout: Layout
    compute: torch.dtype
    table: LaunchTable
    searches: Tensor
    """int64 [jobs] the first search of the tile's job."""
    words: Tensor
    """int64 [jobs, M, 2] hash key words."""

    def constants(self) -> dict[str, object]:
        return self.layout.constants() | {"COMPUTE": DTYPES[self.compute]}


class RadixRun:
    """A search for the k-th magnitudes of jobs whose tables fit into memory together."""

    def __init__(self, jobs: Sequence[Job], radix: Radix, block: int, workspace: Workspace) -> None:
        self._jobs, self._radix, self._block, self._workspace = jobs, radix, block, workspace
        self._resident = all(isinstance(tiles, Sequence) for _, tiles in jobs)
        self.lengths = [sum(map(len, tiles)) if isinstance(tiles, Sequence) else 0 for _, tiles in jobs]
        """[jobs] elements; of tiles that aren't a list known after the first pass."""
        if self._resident:
            self._check_lengths()
        states = [self._first_state(k, n) for (spec, _), n in zip(jobs, self.lengths, strict=True) for k in spec.kept]
        self._active = [
            any(k not in (0, n) for k in spec.kept) for (spec, _), n in zip(jobs, self.lengths, strict=True)
        ]
        self.state = to_device(np.array(states, dtype=np.int64).reshape(-1, STATE), workspace.device)
        """int64 [searches, STATE]"""

    def search(self) -> None:
        """Launch all passes."""
        if not any(self._active):
            return
        radix, searches = self._radix, self.state.shape[0]
        counts = self._workspace.take("radix counts", searches * radix.buckets, torch.int64).zero_()
        kept = list(self._launches()) if self._resident else None
        for number in range(radix.gather):
            if kept is not None or self._awaited(number):
                self._count(number, counts, self._launches(number == 0) if kept is None else kept)
            if number == 0:
                self._check_lengths()
        if kept is not None or self._awaited(radix.gather):
            self._gather(self._launches() if kept is None else kept)

    def _count(self, number: int, counts: Tensor, launches: Iterable[_Launch]) -> None:
        radix = self._radix
        count = radix.counts[number]
        buckets: dict[str, object] = {"BY_HASH": count.by_hash, "BUCKETS": radix.buckets}
        for launch in launches:
            count_kernel[(launch.table.programs,)](
                launch.table.rows, launch.table.blocks, launch.searches, launch.words, self.state, counts,
                number, count.shift,
                **buckets, SPLIT=count.split, **launch.constants(), BLOCK=self._block, **launch_options(self._block),
            )  # fmt: skip
        pick_kernel[(self.state.shape[0],)](
            self.state, counts, number, radix.by_hash, radix.gather, radix.few, count.shift, int(count.split),
            **buckets, **launch_options(radix.buckets, 16),
        )  # fmt: skip

    def _gather(self, launches: Iterable[_Launch]) -> None:
        number, searches, room = self._radix.gather, self.state.shape[0], self._radix.room(max(self.lengths))
        members = self._workspace.take("radix members", searches * room, torch.int64)
        for launch in launches:
            gather_kernel[(launch.table.programs,)](
                launch.table.rows, launch.table.blocks, launch.searches, launch.words, self.state, members, number,
                **launch.constants(), ROOM=room, BLOCK=self._block, **launch_options(self._block),
            )  # fmt: skip
        select_kernel[(searches,)](self.state, members, number, ROOM=room, **launch_options(room, 16))

    def _launches(self, measure: bool = False) -> Iterator[_Launch]:
        """One pass over the tiles; a tile is used before the next one of its job is drawn."""
        first_searches = np.cumsum([0, *(len(spec.kept) for spec, _ in self._jobs)])
        active = [job for job, needed in enumerate(self._active) if needed]
        for tiles in rounds([self._jobs[job][1] for job in active]):
            parts = []
            for place, tile in tiles:
                job = active[place]
                self.lengths[job] += len(tile) if measure else 0
                # The hash has other keys from one 2³² elements to the next.
                tile = _repeated(tile, len(self._jobs[job][0].kept))
                parts += [((Layout.of(part), part.compute), (job, part)) for part in tile.pieces(HASH_RANGE)]
            for (layout, compute), group in grouped(parts).items():
                launch = self._launch(layout, compute, group, first_searches)
                if launch.table.programs:
                    yield launch

    def _launch(
        self, layout: Layout, compute: torch.dtype, group: Sequence[tuple[int, Tile]], first_searches: NDArray[np.int64]
    ) -> _Launch:
        device = self._workspace.device
        words = [[key_words(key, tile.start) for key in self._jobs[job][0].keys] for job, tile in group]
        return _Launch(
            layout,
            compute,
            launch_table([tile for _, tile in group], None, device, self._block),
            to_device(first_searches[[job for job, _ in group]], device),
            to_device(np.array(words, dtype=np.int64), device),
        )

    def _first_state(self, k: int, n: int) -> list[int]:
        """[STATE] n is 0 if it isn't known yet."""
        waits_for = self._radix.gather if 0 < n <= self._radix.few else 0
        if k in (0, n):
            waits_for = self._radix.over
        return [waits_for, k, 0, INFINITY, 0, HASH_RANGE - 1, 0, 0]

    def _awaited(self, number: int) -> bool:
        """Waits for the device."""
        return bool((self.state[:, NEXT] == number).any())

    def _check_lengths(self) -> None:
        for (spec, _), n in zip(self._jobs, self.lengths, strict=True):
            for k in spec.kept:
                if k > n:
                    raise ValueError(f"the {k}-th largest of {n} magnitudes was asked for")


def _repeated(tile: Tile, searches: int) -> Tile:
    """The tile with an input for each search: several of them may look at the same one."""
    inputs = [tile.inputs[i % len(tile.inputs)] for i in range(searches)]
    return Tile(tile.start, inputs, tile.base, tile.compute)
