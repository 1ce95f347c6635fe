"""Runs of elements as rectangles."""

from hypothesis import given
from hypothesis import strategies as st

from mergecore_kernels.torch_ops.rectangles import rectangles


@given(start=st.integers(0, 50), n=st.integers(0, 60), columns=st.integers(1, 20))
def test_they_are_the_run_and_three_at_most(start, n, columns):
    found = list(rectangles(start, n, columns))
    places = [
        (part.row + row, part.column + column)
        for part in found
        for row in range(part.rows)
        for column in range(part.width)
    ]
    assert places == [divmod(i, columns) for i in range(start, start + n)]
    assert [part.at for part in found] == [0, *(part.end for part in found)][: len(found)]
    assert len(found) <= 3
    assert all(part.rows == 1 or (part.column, part.width) == (0, columns) for part in found)
    assert all(part.end_column <= columns for part in found)
