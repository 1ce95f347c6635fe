"""The tiles of a tensor that is too large for a frame: they pass through the frames, once for each pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from mergecore.stream.device_sizes import DeviceSizes
from mergecore.stream.device_tensors import Findings, ReadSpan, SpanTensors
from mergecore.stream.job import Job
from mergecore.stream.layout import Layout, layout_of_factors, layout_of_tile, span_bytes
from mergecore.stream.pipeline import Pipeline
from mergecore.stream.reader import LowRankUpdate
from mergecore_kernels.operations import CHUNK, whole_rows
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace


class StreamedTiles:
    """A job's tiles, for operations that make a pass or a few. Each iteration is a pass.

    A tile is in a frame, so it holds only until the next one is drawn. The first pass looks at what is read.
    """

    def __init__(
        self,
        job: Job,
        pipeline: Pipeline,
        sizes: DeviceSizes,
        operations: Any,
        workspace: Workspace,
        look: Callable[[list[ReadSpan]], Findings],
    ) -> None:
        self.job = job
        self.bytes_read = 0
        self.findings: list[Findings] = []
        """Of the first pass, as far as it has come."""
        self._pipeline, self._look = pipeline, look
        self._is_looked_at = False
        self._tile = _tile_elements(job, sizes)
        self._updates = self._load_updates(operations, workspace)

    def align(self, columns: int) -> None:
        """From now on make tiles of whole rows, of so many columns: as many as in a tile before, at least one."""
        self._tile = whole_rows(self._tile, columns)

    def __iter__(self) -> Iterator[Tile]:
        for frame, tensors in self.loaded():
            try:
                yield tensors.tile
            except GeneratorExit:  # the pass isn't drawn to its end
                self._pipeline.abandon(frame)
                raise
            self._pipeline.release(frame)

    def loaded(self) -> Iterator[tuple[int, SpanTensors]]:
        """One pass: frames with their contents. Each must be handed back to the pipeline before the next is drawn."""
        starts = deque(range(self.job.start, self.job.stop, self._tile))
        loading: deque[tuple[Layout, int]] = deque()
        try:
            while starts or loading:
                while starts and (not loading or self._pipeline.has_free_frame()):
                    start = starts.popleft()
                    layout = layout_of_tile(self.job, start, min(start + self._tile, self.job.stop))
                    loading.append((layout, self._pipeline.load(layout)))
                layout, frame = loading.popleft()
                self._pipeline.loaded(frame)
                self.bytes_read += layout.read_bytes
                stored = ReadSpan.of(layout.spans[0], self._pipeline.memory(frame))
                if not self._is_looked_at:
                    self.findings.append(self._look([stored]))
                yield frame, SpanTensors.of(stored, self._pipeline.memory(frame), self._updates)
        finally:
            for _, frame in loading:  # of a pass that was not drawn to its end
                self._pipeline.abandon(frame)
        self._is_looked_at = True

    def _load_updates(self, operations: Any, workspace: Workspace) -> dict[int, LowRankUpdate]:
        """What adapters add, with its factors outside of the frames."""
        if not self.job.tensor.factors:
            return {}
        layout = layout_of_factors(self.job)
        frame = self._pipeline.load(layout)
        self._pipeline.loaded(frame)
        self.bytes_read += layout.read_bytes
        stored = ReadSpan.of(layout.spans[0], self._pipeline.memory(frame))
        self.findings.append(self._look([stored]))
        updates = stored.updates(operations, workspace)
        self._pipeline.release(frame)
        return updates


def _tile_elements(job: Job, sizes: DeviceSizes) -> int:
    """The most elements, in whole chunks, of which a frame has room for all that belongs to them; at least a chunk."""
    per_chunk = span_bytes(job.tensor, CHUNK, with_factors=False)
    return min(max(sizes.frame_bytes // per_chunk, 1) * CHUNK, sizes.step)
