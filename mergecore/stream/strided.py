"""Reads tensors whose elements don't follow one another in their file, such as a transposed one that was pickled."""

from __future__ import annotations

import numpy as np

from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError


def read_strided(tensor: TensorRef, strides: tuple[int, ...], start: int, into: memoryview) -> None:
    """Fill `into` with the elements from `start` on, counted with the last axis fastest.

    The file is mapped, so only the pages that hold these elements are read. Raises CheckpointError if it can't be read
    or is too short.
    """
    size = tensor.dtype.size
    element = np.dtype(f"u{size}")
    last = sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
    try:
        mapped = np.memmap(tensor.file, np.uint8, "r", tensor.offset_bytes, ((last + 1) * size,))
    except OSError as error:
        raise CheckpointError.at(tensor.file, f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError.at(
            tensor.file, "became shorter while it was read", "is it being written again?"
        ) from error
    values: np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]] = np.ndarray(
        tensor.shape, element, mapped, strides=[step * size for step in strides]
    )
    found = np.frombuffer(into, element)
    found[:] = values.flat[start : start + len(found)]
