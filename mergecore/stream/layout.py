"""Where the tensors of a batch lie in a frame of device memory, and in which parts they are read and written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mergecore.checkpoint.gathered_rows import Stored
from mergecore.plan.plan import OutputTensor
from mergecore.stream.job import Job

ALIGNMENT = 256
"""Bytes: where tensors in a frame begin. Loads of 128 bits need 16."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes that a frame and a file have in common."""

    at: int
    """In the frame."""
    n_bytes: int
    tensor: Stored | OutputTensor
    offset_bytes: int
    """From the tensor's start."""
    job: Job | None = None
    """That writes it; None where it is read."""

    @property
    def end(self) -> int:
        return self.at + self.n_bytes

    def cut(self, n_bytes: int) -> tuple[Piece, Piece]:
        """The first bytes, and the others."""
        rest = replace(
            self,
            at=self.at + n_bytes,
            n_bytes=self.n_bytes - n_bytes,
            offset_bytes=self.offset_bytes + n_bytes,
        )
        return replace(self, n_bytes=n_bytes), rest


@dataclass(frozen=True, slots=True)
class Span:
    """The elements [start, stop) of a job's tensor in a frame: where each of its tensors begins."""

    job: Job
    start: int
    stop: int
    stored: tuple[int, ...]
    """Of `OutputTensor.stored`."""
    factors: tuple[int, ...]
    """Of `OutputTensor.factors`; none where they are held elsewhere."""
    updated: tuple[int, ...]
    """Of the sources that an adapter changes: their values with the update."""
    out: int

    @property
    def n(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a frame: all that is read, then all that is written, then what is only held."""

    spans: tuple[Span, ...]
    reads: tuple[Piece, ...]
    writes: tuple[Piece, ...]
    n_bytes: int

    @property
    def read_bytes(self) -> int:
        return sum(piece.n_bytes for piece in self.reads)


class _Area:
    """Hands out aligned places, one after another."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, n_bytes: int) -> int:
        at = self.end
        self.end = at + aligned(n_bytes)
        return at


def layout_of(jobs: Iterable[Job]) -> Layout:
    """Whole jobs, with the factors of their adapters."""
    return _layout([(job, job.start, job.stop) for job in jobs], with_factors=True)


def layout_of_tile(job: Job, start: int, stop: int) -> Layout:
    """A tile of a job, whose adapters' factors are held elsewhere."""
    return _layout([(job, start, stop)], with_factors=False)


def layout_of_factors(job: Job) -> Layout:
    """Only the factors of the job's adapters."""
    area = _Area()
    reads: list[Piece] = []
    factors = tuple(_read(factor, 0, factor.n, area, reads) for factor in job.tensor.factors)
    return Layout((Span(job, 0, 0, (), factors, (), 0),), tuple(reads), (), area.end)


def span_bytes(tensor: OutputTensor, elements: int, *, with_factors: bool = True) -> int:
    """What so many elements of a tensor take in a frame."""
    computed = 8 if tensor.double else 4
    sizes = [elements * stored.dtype.size for stored in tensor.stored]
    sizes += [elements * computed for source in tensor.sources if source.update]
    sizes += [factor.n_bytes for factor in tensor.factors if with_factors]
    return sum(map(aligned, sizes)) + aligned(elements * tensor.dtype.size)


def aligned(n_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def parts(pieces: Sequence[Piece], size: int) -> list[tuple[Piece, ...]]:
    """The pieces, cut into runs of the frame that fit a buffer of so many bytes, a multiple of the alignment."""
    found: list[tuple[Piece, ...]] = []
    part: list[Piece] = []
    for piece in pieces:
        rest = piece
        while rest.n_bytes:
            begin = part[0].at if part else rest.at
            room = begin + size - rest.at
            if room <= 0:
                found.append(tuple(part))
                part = []
                continue
            piece_here, rest = rest.cut(min(room, rest.n_bytes))
            part.append(piece_here)
    if part:
        found.append(tuple(part))
    return found


def _layout(spans: Sequence[tuple[Job, int, int]], *, with_factors: bool) -> Layout:
    area = _Area()
    reads: list[Piece] = []
    stored = [
        tuple(_read(tensor, start, stop, area, reads) for tensor in job.tensor.stored) for job, start, stop in spans
    ]
    factors = [
        tuple(_read(factor, 0, factor.n, area, reads) for factor in job.tensor.factors if with_factors)
        for job, _, _ in spans
    ]
    outs = [0 if job.question else area.take((stop - start) * job.tensor.dtype.size) for job, start, stop in spans]
    updated = [
        tuple(area.take((stop - start) * (8 if job.tensor.double else 4)) for s in job.tensor.sources if s.update)
        for job, start, stop in spans
    ]
    places = zip(spans, stored, factors, updated, outs, strict=True)
    placed = [
        Span(*span, stored=values, factors=of_adapters, updated=updates, out=out)
        for span, values, of_adapters, updates, out in places
    ]
    writes = [_written(span) for span in placed if span.n and not span.job.question]
    return Layout(tuple(placed), tuple(reads), tuple(writes), area.end)


def _read(tensor: Stored, start: int, stop: int, area: _Area, reads: list[Piece]) -> int:
    """Reserve room for these elements, to be read; gives its place."""
    n_bytes = (stop - start) * tensor.dtype.size
    at = area.take(n_bytes)
    if n_bytes:
        reads.append(Piece(at, n_bytes, tensor, start * tensor.dtype.size))
    return at


def _written(span: Span) -> Piece:
    """The results of a span."""
    tensor = span.job.tensor
    return Piece(span.out, span.n * tensor.dtype.size, tensor, span.start * tensor.dtype.size, span.job)
