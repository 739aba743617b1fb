"""Matrices [step, member]: in memory, or, where they would take much of it, in a file that is mapped into it."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np

from vecsweep._types import FloatArray

_SHARE = 8  # of this machine's memory, a matrix in memory may have an eighth
_BLOCK = 256  # columns: with more, a row of them is longer than what one look at a file brings


def blank(num_rows: int, num_columns: int, fill: float = np.nan) -> FloatArray:
    """Make a matrix of one value, such as NaN for what is not known yet.

    A large one lies in a file among those of `tempfile`, which is gone when nobody has the matrix any more; the system
    keeps in memory what there is room for.

    Args:
        num_rows: how many rows.
        num_columns: how many columns.
        fill: the value.

    Raises:
        OSError: there is no room for the file; `TMPDIR` names another folder.
    """
    shape = (num_rows, num_columns)
    if 8 * num_rows * num_columns <= most_in_memory():
        return np.full(shape, fill)
    with tempfile.TemporaryFile(prefix="vecsweep-") as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full would end the process later
            os.posix_fallocate(file.fileno(), 0, 8 * num_rows * num_columns)
        matrix = np.memmap(file, np.float64, "w+", shape=shape)
    for rows in row_blocks(matrix):
        matrix[rows] = fill
    return matrix


def most_in_memory() -> int:
    """How many bytes a matrix in memory may have."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SHARE
    except (AttributeError, OSError, ValueError):  # Windows has no such names
        return 2**31


def row_blocks(matrix: FloatArray) -> Iterator[slice]:
    """Divide the rows of a matrix, so that what is made of some of them is small."""
    size = max(1, 2**22 // max(1, matrix.shape[1]))
    return (slice(start, start + size) for start in range(0, len(matrix), size))


def column_blocks(num_columns: int) -> Iterator[slice]:
    """Divide columns, so that who goes through them one by one reads a file in order."""
    return (slice(start, min(start + _BLOCK, num_columns)) for start in range(0, num_columns, _BLOCK))
