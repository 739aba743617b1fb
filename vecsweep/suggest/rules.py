"""Rules that read a learning rate off a curve of loss against lr.

A *rule* is any function `(lrs, losses) -> lr` of two float64 arrays `[lr]` with at least one point: `lrs` ascending,
`losses` finite. Averaging over seeds is the caller's.

References:
    Smith 2015, Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186.
    The rules of fastai 2, https://docs.fast.ai/callback.schedule.html, whose numbers are matched.
"""

from collections.abc import Callable

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.suggest.basin import read_basin

Rule = Callable[[FloatArray, FloatArray], float]


def steepest(lrs: FloatArray, losses: FloatArray) -> float:
    """Return the lr where the loss falls fastest.

    The slope between neighbours is `(losses[i + 1] - losses[i]) / (log(lrs[i + 1]) - log(lrs[i]))`; the
    answer is `lrs[i]`, the left point of the steepest pair, the first of equals. One point alone is its own
    answer.

    Example:
        >>> steepest(np.array([0.01, 0.1, 1.0, 10.0]), np.array([3.0, 2.5, 1.0, 4.0]))
        0.1

    Reference:
        `steep` of fastai.
    """
    if lrs.size == 1:
        return float(lrs[0])
    return float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))])


def valley(lrs: FloatArray, losses: FloatArray) -> float:
    """Return the lr about half-way down the longest valley, a strictly falling subsequence of the losses.

    With `length` the number of points of the longest valley and `end` the index of its last point (the
    first such index if several valleys are as long), `start = end - length`, `section = (end - start) / 3`,
    and the answer is at index `start + int(section) + int(section / 2)`. A curve that never falls, or has
    one point, gives `lrs[0]`.

    As in fastai, `start` counts the valley's points, not the positions they stand at: where the valley
    skips points, `start` lies right of its first point. Also as in fastai, if the longest valley is just
    the first two points, the index is -1 and the answer the *largest* lr; `suggest` doubts any answer whose
    loss is clearly higher than at the smallest lr.

    Example:
        >>> valley(np.geomspace(1e-7, 1.0, 8), np.array([9.0, 9.0, 8.0, 7.0, 5.0, 3.0, 2.0, 9.0]))
        0.0001

    Reference:
        `valley` of fastai, https://forums.fast.ai/t/automated-learning-rate-suggester/44199/30.
    """
    lengths = np.ones(losses.size, dtype=np.int64)  # of the longest valley that ends at each point
    for i in range(1, losses.size):
        lengths[i] += np.max(lengths[:i], where=losses[:i] > losses[i], initial=0)
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    if length == 1:
        return float(lrs[0])
    section = length / 3
    return float(lrs[end - length + int(section) + int(section / 2)])


def slide(
    lrs: FloatArray,
    losses: FloatArray,
    *,
    lr_diff: int = 15,
    thresh: float = 0.005,
    adjust_value: float = 1.0,
) -> float:
    """Return the lr where an interval that slides down from the largest lr comes to rest.

    The interval joins points `i` and `i + lr_diff`. It starts at the right end of the curve and moves left
    by one point as long as `abs(gradient[i + lr_diff] - gradient[i]) > thresh`, `gradient` being the
    central difference of the losses by index (`np.gradient`). The answer is `adjust_value` times the lr of
    the last left end it moved from, or of the first left end if it never moved. A curve of `lr_diff` points
    or fewer gives `adjust_value * lrs[0]`; fastai raises IndexError.

    Args:
        lrs: `[lr]`, ascending.
        losses: `[lr]`, finite.
        lr_diff: Length of the interval, in points.
        thresh: Largest difference of the gradients at its ends at which it rests, in units of the loss.
        adjust_value: Factor on the answer.

    Raises:
        ValueError: If `lr_diff` is less than 1.

    Example:
        >>> slide(np.geomspace(1e-5, 1.0, 6), np.array([2.0, 2.0, 2.0, 2.0, 3.0, 9.0]), lr_diff=2)
        0.0001

    Reference:
        `slide` of fastai, https://forums.fast.ai/t/automated-learning-rate-suggester/44199.
    """
    if lr_diff < 1:
        raise ValueError(f"`lr_diff` must be at least 1; got {lr_diff}. Pass a number of points, such as 15.")
    if losses.size <= lr_diff:
        return adjust_value * float(lrs[0])
    gradient = np.gradient(losses)
    moves = np.abs(gradient[lr_diff:] - gradient[:-lr_diff]) > thresh  # by left end
    rests = np.flatnonzero(~moves)
    last_moved = int(rests[-1]) + 1 if rests.size else 0
    return adjust_value * float(lrs[min(last_moved, moves.size - 1)])


def lowest(lrs: FloatArray, losses: FloatArray) -> float:
    """Return the lr at the lowest loss, the first of equals.

    The rule for a grid, where each loss comes from a run at that lr alone and the lowest is the best found. On a ramp
    the loss lags behind the rising lr, so that its lowest point lies beyond the best lr; see `minimum`.

    Example:
        >>> lowest(np.array([0.01, 0.1, 1.0, 10.0]), np.array([3.0, 2.5, 1.0, 4.0]))
        1.0
    """
    return float(lrs[np.argmin(losses)])


def basin(lrs: FloatArray, losses: FloatArray) -> float:
    """Return the centre of the basin that the lowest loss is in; see `read_basin`, which this gives the losses to.

    The rule for a grid, where the lowest point jumps about with the seed. The loss at the smallest lr stands for that
    of untrained weights.

    Example:
        >>> basin(np.array([1e-4, 0.01, 0.1, 1.0]), np.array([3.0, 1.0, 1.01, 4.0])) > 0.02
        True
    """
    best = int(np.argmin(losses))
    gain = losses[0] - losses[best]
    if gain <= 0:
        return float(lrs[best])
    return read_basin(lrs, (losses - losses[best]) / gain, best).lr


def minimum(lrs: FloatArray, losses: FloatArray) -> float:
    """Return a tenth of the lr at the lowest loss, the first of equals; it may lie below the range tested.

    Example:
        >>> minimum(np.array([0.01, 0.1, 1.0, 10.0]), np.array([3.0, 2.5, 1.0, 4.0]))
        0.1

    Reference:
        `minimum` of fastai.
    """
    return float(lrs[np.argmin(losses)]) / 10


def third_of_largest_stable(lrs: FloatArray, losses: FloatArray) -> float:
    """Return a third of the largest stable lr.

    An lr is unstable if its loss is not finite, or if it is past the minimum of the curve and its loss is
    higher than the curve's first. The largest stable lr is the one right before the first unstable lr; if
    none is unstable it is the largest of all, and the true one may lie above the range. A curve whose first
    losses are not finite begins, for this purpose, at its first finite loss.

    Unlike the other rules, `suggest` shows this one the points that diverged.

    Example:
        >>> third_of_largest_stable(np.array([0.03, 0.3, 3.0, 30.0]), np.array([2.0, 1.0, 1.9, 2.1]))
        1.0

    Reference:
        Smith 2015, section 3.3, takes a third or a quarter of the largest lr that converges as the lower
        bound of a cycle.
    """
    return _largest_stable(lrs, losses) / 3


def quarter_of_largest_stable(lrs: FloatArray, losses: FloatArray) -> float:
    """Return a quarter of the largest stable lr, as `third_of_largest_stable` defines it.

    Example:
        >>> quarter_of_largest_stable(np.array([0.004, 0.04, 0.4, 4.0]), np.array([2.0, 1.0, 1.9, np.nan]))
        0.1

    Reference:
        Smith 2015, section 3.3.
    """
    return _largest_stable(lrs, losses) / 4


def _largest_stable(lrs: FloatArray, losses: FloatArray) -> float:
    first = int(np.argmax(np.isfinite(losses)))
    lrs, losses = lrs[first:], losses[first:]
    is_past_minimum = np.arange(losses.size) > np.nanargmin(losses)
    is_unstable = ~np.isfinite(losses) | (is_past_minimum & (losses > losses[0]))
    return float(lrs[np.argmax(is_unstable) - 1] if is_unstable.any() else lrs[-1])


RULES: dict[str, Rule] = {
    "lowest": lowest,
    "basin": basin,
    "valley": valley,
    "steepest": steepest,
    "slide": slide,
    "minimum": minimum,
    "third_of_largest_stable": third_of_largest_stable,
    "quarter_of_largest_stable": quarter_of_largest_stable,
}

# What these look for - where the loss of a rising lr falls, before it has come down - a grid does not show.
RAMP_RULES: tuple[Rule, ...] = (valley, steepest, slide, minimum)

SHOWN_DIVERGED: tuple[Rule, ...] = (third_of_largest_stable, quarter_of_largest_stable)
