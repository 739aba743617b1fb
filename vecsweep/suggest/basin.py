"""The basin: the learning rates around the best that are nearly as good, and the steadiest of them.

The lowest point of a measured curve jumps about with the seed, because the basin is flat; its centre does not.
"""

from typing import NamedTuple

import numpy as np

from vecsweep._types import FloatArray

TOLERANCE = 0.02  # of what training gains
_REGION = 3.0  # tolerances: what is further behind, or beyond it, has no say in where the centre is


class Basin(NamedTuple):
    """Learning rates that are nearly as good as the best.

    Attributes:
        lr: the steadiest; the mean in log lr, in which each counts the less the further it is behind.
        low: the least that is good enough.
        high: the largest.
    """

    lr: float
    low: float
    high: float

    def at(self, position: float) -> "Basin":
        """The same with `lr` at a place between its ends in log lr, from 0 to 1."""
        return self._replace(lr=self.low ** (1 - position) * self.high**position)


def read_basin(lrs: FloatArray, gaps: FloatArray, best: int, tolerance: float = TOLERANCE) -> Basin:
    """Find the basin that the best learning rate is in.

    Args:
        lrs: `[lr]`, ascending.
        gaps: `[lr]`, how far each is behind the best, as a share of what training gains: 0 is as good, 1 as bad as
            untrained; infinite where it diverged.
        best: the index of the best.
        tolerance: the gap that is good enough.

    Returns:
        The basin; its ends lie where the gap, linear in log lr between those that were tried, crosses the tolerance.

    Example:
        >>> basin = read_basin(np.array([0.01, 0.1, 1.0]), np.array([0.04, 0.0, np.inf]), best=1)
        >>> [round(lr, 3) for lr in basin]
        [0.076, 0.032, 0.1]
    """
    x = np.log(lrs)
    first = last = best
    while first > 0 and gaps[first - 1] <= _REGION * tolerance:
        first -= 1
    while last < len(lrs) - 1 and gaps[last + 1] <= _REGION * tolerance:
        last += 1
    near = slice(first, last + 1)
    weights = np.exp(-gaps[near] / tolerance)
    centre = float(np.exp((weights * x[near]).sum() / weights.sum()))
    low, high = (_crossing(x, gaps, best, tolerance, step) for step in (-1, 1))
    return Basin(min(max(centre, low), high), low, high)


def _crossing(x: FloatArray, gaps: FloatArray, best: int, tolerance: float, step: int) -> float:
    """The lr, from the best on in one direction, at which the gap comes to the tolerance."""
    i = best
    while 0 <= i + step < len(x) and gaps[i + step] <= tolerance:
        i += step
    if not 0 <= i + step < len(x) or not np.isfinite(gaps[i + step]):
        return float(np.exp(x[i]))
    share = (tolerance - gaps[i]) / (gaps[i + step] - gaps[i])
    return float(np.exp(x[i] + share * (x[i + step] - x[i])))
