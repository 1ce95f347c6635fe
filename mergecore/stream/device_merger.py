"""Merges batches of tensors on one device: measure, solve, combine, with work queued ahead of the device.

The host waits for the device where a measurement's result is needed: once for all tensors of a batch. All that a batch
reads stays in its frame until it is written, so that each input byte passes the disk and the bus once. Only a tensor
that is too large for a frame goes through in tiles, once for each pass that its operations make.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mergecore import methods
from mergecore.errors import RunError
from mergecore.methods.plugins import blamed
from mergecore.plan.plan import OutputTensor
from mergecore.stream.accelerator import Accelerator
from mergecore.stream.device_sizes import DeviceSizes
from mergecore.stream.device_tensors import Findings, ReadSpan, SpanTensors
from mergecore.stream.digests import PieceHasher
from mergecore.stream.findings import nonfinite_sources
from mergecore.stream.job import Job, Outcome, Setup
from mergecore.stream.layout import Layout, Piece, layout_of, span_bytes
from mergecore.stream.pipeline import Pipeline
from mergecore.stream.solve import questions
from mergecore.stream.streamed_tiles import StreamedTiles
from mergecore_kernels.operations import Combine, Copy, Measure, TileFunction, row_length, whole_rows
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


class DeviceMerger:
    """Merges jobs in the frames of a pipeline."""

    def __init__(
        self,
        setup: Setup,
        accelerator: Accelerator,
        pipeline: Pipeline,
        sizes: DeviceSizes,
        on_done: Callable[[Outcome], None],
    ) -> None:
        """on_done: is called for each job when its results are written, perhaps in another thread."""
        self._setup, self._accelerator, self._pipeline, self._sizes = setup, accelerator, pipeline, sizes
        self._on_done = on_done
        self._operations = import_module(f"mergecore_kernels.{setup.backend.name}_ops")
        self._workspace = Workspace(accelerator.device, sizes.scratch_bytes)

    def run(self, take: Callable[[int, int], list[Job]]) -> None:
        """Do the jobs that `take` gives, which is told how many bytes and elements may come together; none is the end.

        Raises MergeError, or torch.cuda.OutOfMemoryError; then some of the jobs that were taken are not done.
        """
        with self._accelerator.computing():
            loading: deque[tuple[Layout, int]] = deque()
            while True:
                while not loading or self._pipeline.has_free_frame():
                    jobs = take(self._sizes.frame_bytes, self._sizes.step)
                    if not jobs:
                        break
                    if self._fits(jobs[0]):
                        layout = layout_of(jobs)
                        loading.append((layout, self._pipeline.load(layout)))
                        continue
                    while loading:  # the large one needs all frames
                        self._merge_batch(*loading.popleft())
                    self._merge_in_tiles(jobs[0])
                if not loading:
                    break
                self._merge_batch(*loading.popleft())
            self._pipeline.drain()

    def _fits(self, job: Job) -> bool:
        return span_bytes(job.tensor, job.stop - job.start) <= self._sizes.frame_bytes

    def _merge_batch(self, layout: Layout, frame: int) -> None:
        """Merge jobs, all of which are in a frame, or answer their questions."""
        self._pipeline.loaded(frame)
        memory = self._pipeline.memory(frame)
        stored = [ReadSpan.of(span, memory) for span in layout.spans]
        findings = self._look(stored)
        spans = [SpanTensors.of(one, memory, one.updates(self._operations, self._workspace)) for one in stored]
        tiles: list[Tiles] = [span.tiles(self._sizes.step) for span in spans]
        jobs = [span.job for span in layout.spans]
        answers = self._answers(jobs, tiles)
        combines = self._solved(jobs, tiles, findings.check)
        self._combine([(combine, span) for combine, span in zip(combines, spans, strict=True) if combine is not None])
        hashers = _Hashers(jobs)

        def done() -> None:
            for job, counts, answer in zip(jobs, findings.nonfinite(), answers, strict=True):
                self._finish(job, counts, answer, _read_bytes(job), hashers.found(job))

        if layout.writes:
            self._pipeline.unload(frame, findings.check, hashers.add, done)
        else:
            self._pipeline.release(frame)
            findings.check()
            done()

    def _merge_in_tiles(self, job: Job) -> None:
        """Merge a job that is larger than a frame, or answer its question."""
        tiles = StreamedTiles(job, self._pipeline, self._sizes, self._operations, self._workspace, self._look)

        def check() -> None:
            for found in list(tiles.findings):
                found.check()

        (answer,) = self._answers([job], [tiles])
        (combine,) = self._solved([job], [tiles], check)
        hashers = _Hashers([job])
        if combine is not None:
            tiles.align(row_length(combine))
            for frame, span in tiles.loaded():
                self._combine([(combine, span)])
                self._pipeline.unload(frame, check, hashers.add)
            self._pipeline.drain()
        check()
        counts = [sum(of_source) for of_source in zip(*(found.nonfinite()[0] for found in tiles.findings), strict=True)]
        self._finish(job, counts, answer, tiles.bytes_read, hashers.found(job))

    def _look(self, stored: Sequence[ReadSpan]) -> Findings:
        return Findings(self._setup, self._accelerator, self._operations, stored)

    def _answers(self, jobs: Sequence[Job], tiles: Sequence[Tiles]) -> list[Any]:
        """What each job asks; None for those that merge."""
        asked = {i: job.question for i, job in enumerate(jobs) if job.question is not None}
        found = self._measured(asked, tiles)
        return [found.get(i) for i in range(len(jobs))]

    def _solved(self, jobs: Sequence[Job], tiles: Sequence[Tiles], check: Callable[[], None]) -> list[Combine | None]:
        """What to combine for each job that merges: all recipes side by side, so that measurements share launches."""
        recipes = {i: self._recipe(job.tensor) for i, job in enumerate(jobs) if job.question is None}
        combines: list[Combine | None] = [None] * len(jobs)
        answers: dict[int, Any] = dict.fromkeys(recipes)
        while answers:
            asked: dict[int, Measure] = {}
            for i, answer in answers.items():
                try:
                    asked[i] = recipes[i].send(answer)
                except StopIteration as end:
                    combines[i] = end.value
            answers = self._measured(asked, tiles)
            if asked:
                check()  # which costs nothing, as the device has been waited for
        return combines

    def _recipe(self, tensor: OutputTensor) -> Generator[Measure, Any, Combine]:
        if tensor.method is None:
            return Copy()
        assert tensor.params is not None
        target = tensor.target(self._setup.seed, self._setup.survey)
        return (yield from questions(methods.get(tensor.method), tensor.params, target))

    def _measured(self, asked: dict[int, Measure], tiles: Sequence[Tiles]) -> dict[int, Any]:
        """The answers, by job."""
        jobs = [(question, tiles[i]) for i, question in asked.items()]
        return dict(zip(asked, self._operations.measure_batch(jobs, self._workspace), strict=True))

    def _combine(self, works: Sequence[tuple[Combine, SpanTensors]]) -> None:
        """Queue combinations, so many elements at a time that the operations' scratch memory is enough."""
        batch: list[tuple[Combine, Tile, Tensor]] = []
        n = 0
        for combine, span in works:
            for tile in span.tiles(whole_rows(self._sizes.step, row_length(combine))):
                first = tile.start - span.span.start
                out = span.out[first : first + len(tile)]
                if self._combined_alone(combine, span, tile, out):
                    continue
                if batch and n + len(tile) > self._sizes.step:
                    self._operations.combine_batch(batch, self._workspace)
                    batch, n = [], 0
                batch.append((combine, tile, out))
                n += len(tile)
        self._operations.combine_batch(batch, self._workspace)

    def _combined_alone(self, combine: Combine, span: SpanTensors, tile: Tile, out: Tensor) -> bool:
        """Combine what isn't for a batch: copies of the bytes, and functions whose errors are their plug-in's."""
        if isinstance(combine, Copy) and tile.inputs[0].dtype == out.dtype:
            out.view(torch.uint8).copy_(tile.inputs[0].view(torch.uint8))
            return True
        if not isinstance(combine, TileFunction):
            return False
        tensor = span.span.job.tensor
        assert tensor.method is not None
        with blamed(methods.get(tensor.method), tensor.name, RunError):
            self._operations.combine(combine, tile, out, self._workspace)
        return True

    def _finish(
        self, job: Job, nonfinite: Sequence[int], answer: Any, read_bytes: int, blocks: Mapping[int, bytes]
    ) -> None:
        if job.question is not None:
            self._on_done(Outcome(read_bytes, 0, (), job, answer))
            return
        found = nonfinite_sources(job.tensor, nonfinite, self._setup.model_names)
        written_bytes = (job.stop - job.start) * job.tensor.dtype.size
        self._on_done(Outcome(read_bytes, written_bytes, found, job, blocks=blocks))


class _Hashers:
    """Hash the blocks of what some jobs write. For several threads."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._of_job = {id(job): _hasher(job) for job in jobs}

    def add(self, piece: Piece, data: memoryview) -> None:
        """The bytes of a piece that is written."""
        self._of_job[id(piece.job)].add(piece.offset_bytes, data)

    def found(self, job: Job) -> Mapping[int, bytes]:
        """The hashes of a job's blocks, when it is written as a whole."""
        return self._of_job[id(job)].found


def _hasher(job: Job) -> PieceHasher:
    size = job.tensor.dtype.size
    return PieceHasher(job.start * size, job.stop * size, job.tensor.n_bytes)


def _read_bytes(job: Job) -> int:
    """What is read of a job that fits a frame."""
    values = (job.stop - job.start) * sum(stored.dtype.size for stored in job.tensor.stored)
    return values + sum(factor.n_bytes for factor in job.tensor.factors)
