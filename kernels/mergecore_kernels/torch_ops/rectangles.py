"""A run of elements of a matrix that is stored row after row, as rectangles of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rectangle:
    """So many elements of each of some rows: either whole rows, or a part of one."""

    at: int
    """Of its first element, counted from the run's first."""
    row: int
    """Its first row in the matrix."""
    column: int
    """Its first column in the matrix."""
    rows: int
    width: int

    @property
    def end(self) -> int:
        """Where in the run its elements end."""
        return self.at + self.rows * self.width

    @property
    def end_column(self) -> int:
        return self.column + self.width


def rectangles(start: int, n: int, columns: int) -> Iterator[Rectangle]:
    """The elements [start, start + n) of a matrix with so many columns.

    There are three rectangles at most: the rest of a row that began before, whole rows, the beginning of another row.
    """
    at = 0
    while at < n:
        row, column = divmod(start + at, columns)
        whole = 0 if column else (n - at) // columns
        rows, width = (whole, columns) if whole else (1, min(columns - column, n - at))
        yield Rectangle(at, row, column, rows, width)
        at += rows * width
