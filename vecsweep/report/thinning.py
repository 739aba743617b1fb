"""Curves thinned out to what the eye can tell apart: each stretch of rows by its mean, its lowest and its highest."""

import numpy as np

from vecsweep._types import FloatArray

_MOST_POINTS = 100_000  # of all curves of a chart together, which a browser draws within a second
_MOST_STRETCHES = 1000  # of a curve: a pixel each, on a large screen
_LEAST_STRETCHES = 150


def find_stretch(num_rows: int, num_curves: int) -> int:
    """Return how many rows are drawn as one; 1 where there is room for all."""
    if num_rows * num_curves <= _MOST_POINTS and num_rows <= 2 * _MOST_STRETCHES:
        return 1
    stretches = min(_MOST_STRETCHES, max(_LEAST_STRETCHES, _MOST_POINTS // (2 * num_curves)))
    return -(-num_rows // stretches)


def means(
    values: FloatArray,  # [row, curve]
    length: int,
) -> FloatArray:
    """Return the mean of the finite values of each stretch, `[stretch, curve]`; NaN where there are none."""
    parts = _cut(values, length)
    is_finite = np.isfinite(parts)
    counts = is_finite.sum(axis=1)
    sums = np.where(is_finite, parts, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def lowest(
    values: FloatArray,  # [row, curve]
    length: int,
) -> FloatArray:
    """Return the lowest value of each stretch, `[stretch, curve]`."""
    return np.asarray(np.fmin.reduce(_cut(values, length), axis=1))


def highest(
    values: FloatArray,  # [row, curve]
    length: int,
) -> FloatArray:
    """Return the highest value of each stretch, `[stretch, curve]`."""
    return np.asarray(np.fmax.reduce(_cut(values, length), axis=1))


def extremes(
    values: FloatArray,  # [row, curve]
    length: int,
) -> FloatArray:
    """Return the lowest and the highest value of each stretch, in the order in which they came, `[2 stretch, curve]`.

    A line through them touches every pixel that the whole curve touches, where a stretch is a pixel wide.
    """
    parts = _cut(values, length)
    low, high = np.fmin.reduce(parts, axis=1), np.fmax.reduce(parts, axis=1)
    falls = np.argmax(parts == high[:, None], axis=1) < np.argmax(parts == low[:, None], axis=1)
    pairs: FloatArray = np.stack([np.where(falls, high, low), np.where(falls, low, high)], axis=1)
    return pairs.reshape(-1, values.shape[1])


def _cut(
    values: FloatArray,  # [row, curve]
    length: int,
) -> FloatArray:
    """Cut rows into stretches, `[stretch, row, curve]`, the last filled up with NaN."""
    missing = -len(values) % length
    filled: FloatArray = np.concatenate([values, np.full((missing, values.shape[1]), np.nan)])
    return filled.reshape(-1, length, values.shape[1])
