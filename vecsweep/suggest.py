"""Rules that read a learning rate off a curve of loss against lr, and the smoothing of curves.

A *rule* is any function `(lrs, losses) -> lr` of two float64 arrays `[lr]` with at least one point: `lrs`
ascending, `losses` finite. `suggest` validates a curve, leaves out what diverged, applies a rule and says
what is doubtful about the answer. Nothing here trains or plots, and averaging over seeds is the caller's.

References:
    Smith 2015, Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186.
    The rules of fastai 2, https://docs.fast.ai/callback.schedule.html, whose numbers are matched.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecsweep.doubts import curve_doubts, lr_doubts

FloatArray = NDArray[np.float64]
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
    "valley": valley,
    "steepest": steepest,
    "slide": slide,
    "minimum": minimum,
    "third_of_largest_stable": third_of_largest_stable,
    "quarter_of_largest_stable": quarter_of_largest_stable,
}

_SHOWN_DIVERGED: tuple[Rule, ...] = (third_of_largest_stable, quarter_of_largest_stable)


def smooth(losses: ArrayLike, smoothing: float) -> FloatArray:
    """Average losses exponentially over steps, debiased, so that the first average is the first loss.

    `average = smoothing * average + (1 - smoothing) * loss`, from 0, and what is returned is
    `average / (1 - smoothing**count)`, `count` being the number of finite losses so far. A loss that is not
    finite gives NaN in its place and changes no later average.

    Args:
        losses: `[step]` or `[step, member]`; each member is averaged on its own. Not changed.
        smoothing: Weight of the past, in [0, 1); 0 returns the finite losses as they are.

    Returns:
        The averages, a new array of the shape of `losses`.

    Raises:
        ValueError: If `smoothing` is outside [0, 1), or `losses` has not one or two axes.

    Example:
        >>> smooth([4.0, float("nan"), 1.0], smoothing=0.5).tolist()
        [4.0, nan, 2.0]

    Reference:
        The debiasing is that of Adam, https://arxiv.org/abs/1412.6980, section 3.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1); got {smoothing}. Pass a weight such as 0.9, or 0.")
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"`losses` must be [step] or [step, member]; got shape {values.shape}. Reshape it.")
    columns = values.reshape(len(values), math.prod(values.shape[1:]))
    is_finite = np.isfinite(columns)
    counts = np.cumsum(is_finite, axis=0)
    smoothed = np.full(columns.shape, np.nan)
    average = np.zeros(columns.shape[1])
    for step, loss in enumerate(columns):
        average = np.where(is_finite[step], smoothing * average + (1 - smoothing) * loss, average)
        np.divide(average, 1 - smoothing ** counts[step], out=smoothed[step], where=is_finite[step])
    return smoothed.reshape(values.shape)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A learning rate read off a curve, and what is doubtful about it; `float(suggestion)` is the lr.

    Example:
        >>> print(Suggestion(lr=0.0398, rule="valley", loss=0.412))
        0.0398 (valley; loss 0.412)
    """

    lr: float
    """The suggested learning rate."""
    rule: str
    """Name of the rule that gave it."""
    loss: float
    """Smoothed loss at `lr`, interpolated over log lr; beyond the curve, that of its nearest end."""
    doubts: tuple[str, ...] = ()
    """What is doubtful about it, in full sentences; empty when nothing is."""

    def __str__(self) -> str:
        line = f"{self.lr:.3g} ({self.rule}; loss {self.loss:.3g})"
        return f"{line}. Doubts: {' '.join(self.doubts)}" if self.doubts else line

    def __float__(self) -> float:
        return self.lr


def suggest(lrs: ArrayLike, losses: ArrayLike, rule: str | Rule = "valley", *, smoothing: float = 0.0) -> Suggestion:
    """Suggest a learning rate from a curve of loss against lr.

    The losses are smoothed, points whose loss is not finite (they diverged) are left out, and the rule is
    applied to a copy of what remains. Only the two rules on the largest stable lr see the whole curve.

    Args:
        lrs: `[lr]`, positive and strictly ascending.
        losses: `[lr]`, one per lr; NaN or infinite where training diverged.
        rule: A name in `RULES`, or a function `(lrs, losses) -> lr`.
        smoothing: Weight of the past in [0, 1), along the lr axis, as in `smooth`.

    Raises:
        ValueError: If the curve or `smoothing` is not as above, if no rule has that name, if every lr
            diverged, or if the rule's answer is not positive and finite.
        TypeError: If `rule` is neither a name nor callable, or its answer is not a number.

    Example:
        >>> lrs = np.geomspace(1e-5, 1.0, 11)
        >>> losses = [2.3, 2.3, 2.2, 2.0, 1.7, 1.2, 0.8, 0.7, 0.9, 2.5, float("nan")]
        >>> print(suggest(lrs, losses))
        0.000316 (valley; loss 2)
    """
    name, function = _resolve(rule)
    tested, raw = _validated(lrs, losses)
    curve = smooth(raw, smoothing)
    is_finite = np.isfinite(curve)
    if not is_finite.any():
        raise ValueError(
            f"`losses` must be finite for at least one lr; every learning rate diverged, all {tested.size} "
            f"from {tested[0]:.3g} up. Lower `start_lr` below {tested[0]:.3g}; if that does not help, look for "
            "NaN in the data and the loss, and for batches whose losses differ so much that a larger "
            "`divergence_factor` is needed."
        )
    shown = np.ones_like(is_finite) if function in _SHOWN_DIVERGED else is_finite
    lr = _checked(function(tested[shown], curve[shown]), name)
    loss = float(np.interp(np.log(lr), np.log(tested[is_finite]), curve[is_finite]))
    doubts = (*curve_doubts(tested, curve), *lr_doubts(tested, curve, lr, loss))
    return Suggestion(lr=lr, rule=name, loss=loss, doubts=doubts)


def _resolve(rule: str | Rule) -> tuple[str, Rule]:
    if callable(rule):
        named = getattr(rule, "func", rule)  # a functools.partial has no name of its own
        return getattr(named, "__name__", type(rule).__name__), rule
    if not isinstance(rule, str):
        raise TypeError(f"`rule` must be a name or a function; got {rule!r}. Pass a name such as 'valley'.")
    if rule not in RULES:
        closest = difflib.get_close_matches(rule, RULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}; got {rule!r}. Did you mean {closest!r}?")
    return rule, RULES[rule]


def _validated(lrs: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    tested, raw = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    for name, values in (("lrs", tested), ("losses", raw)):
        if values.ndim != 1:
            raise ValueError(f"`{name}` must have one axis; got shape {values.shape}. Pass a single curve.")
    if tested.size != raw.size:
        raise ValueError(
            f"`lrs` and `losses` must be of one length; got {tested.size} and {raw.size}. Pass a loss per lr."
        )
    if tested.size == 0:
        raise ValueError("`lrs` must hold at least one lr; got none. Pass the lrs that were tested.")
    for index in np.flatnonzero(~(np.isfinite(tested) & (tested > 0))):
        raise ValueError(f"`lrs` must be positive and finite; got {tested[index]} at index {index}. Drop it.")
    for index in np.flatnonzero(np.diff(tested) <= 0) + 1:
        raise ValueError(
            f"`lrs` must be strictly ascending; got {tested[index]} at index {index}, "
            f"after {tested[index - 1]}. Sort both arrays by lr, and average the losses of equal lrs."
        )
    return tested, raw


def _checked(answer: Any, name: str) -> float:
    remedy = "Return a number, such as one of the `lrs` it is given."
    if not isinstance(answer, SupportsFloat) or getattr(answer, "shape", ()) != ():
        raise TypeError(f"The rule `{name}` must return one number; it returned {answer!r}. {remedy}")
    lr = float(answer)
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"The rule `{name}` must return a positive finite lr; it returned {lr}. {remedy}")
    return lr


class CyclicalBounds(NamedTuple):
    """Between which learning rates a cyclical schedule goes.

    Attributes:
        base_lr: where accuracy starts to rise.
        max_lr: up to where it stays near its best.
    """

    base_lr: float
    max_lr: float


def cyclical_bounds(lrs: ArrayLike, accuracies: ArrayLike, *, tolerance: float = 0.05) -> CyclicalBounds:
    """Read the bounds of cyclical learning rates off a range test of accuracy.

    With `reach` the best accuracy less that of the smallest lr, accuracy has started to rise at the last lr before it
    is above its start by more than `tolerance * reach` for good, up to its best; and it falls after the last lr from
    its best on at which it is within `tolerance * reach` of it. What diverged counts as fallen.

    Args:
        lrs: `[lr]`, positive and strictly ascending.
        accuracies: `[lr]`, more of which is better; NaN where training diverged.
        tolerance: between 0 and 1, the share of the whole rise that passes for noise.

    Raises:
        ValueError: the curve is not as above, or never rises.

    Example:
        >>> lrs = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
        >>> cyclical_bounds(lrs, [0.1, 0.1, 0.6, 0.8, 0.79, 0.1])
        CyclicalBounds(base_lr=0.001, max_lr=1.0)

    Reference:
        Smith 2015, section 3.3, takes both by eye from such a curve.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1; got {tolerance!r}. Pass 0.05, say.")
    tested, raw = _validated(lrs, accuracies)
    is_finite = np.isfinite(raw)
    curve = np.where(is_finite, raw, -np.inf)
    start, peak = raw[int(np.argmax(is_finite))], int(np.argmax(curve))
    if not curve[peak] > start:
        raise ValueError(
            f"`accuracies` must rise somewhere; the best, {curve[peak]:.3g}, is that of the smallest lr, "
            f"{tested[0]:.3g}. Start the range test lower."
        )
    reach = curve[peak] - start
    is_low = curve[: peak + 1] <= start + tolerance * reach
    is_high = curve[peak:] >= curve[peak] - tolerance * reach
    fallen = int(np.argmin(is_high)) if not is_high.all() else len(is_high)
    return CyclicalBounds(float(tested[np.flatnonzero(is_low)[-1]]), float(tested[peak + fallen - 1]))
