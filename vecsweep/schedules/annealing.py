"""Schedules that anneal from one value to another, and what puts them one after another.

Not here: policies made of them (`policies.py`), and schedules in stages (`decay.py`) and cycles (`cycles.py`).

References:
    fastai 2, https://docs.fast.ai/callback.schedule.html, whose numbers are matched.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.schedules.schedule import (
    EDGE,
    Curve,
    Schedule,
    as_function,
    check_fraction,
    check_number,
    check_numbers,
    describe,
)

_MULTIPLE = "Pass a multiple of the lr, such as 0.1."


def constant(value: float = 1.0) -> Schedule:
    """Keep one value: `value`.

    Args:
        value: the multiple.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: `value` is no number.
        ValueError: `value` is negative or not finite.

    Example:
        >>> from vecsweep.schedules import constant
        >>> constant()([0.0, 0.5, 1.0])
        array([1., 1., 1.])

    Reference:
        `SchedNo` of fastai.
    """
    value = check_number("value", value, "of at least 0", _MULTIPLE)
    return Schedule(lambda progress: np.full(np.shape(progress), value), name=describe("constant", value=value))


def linear(start: float, end: float) -> Schedule:
    """Go from `start` to `end` in a line: `start + (end - start) * p` at progress `p`.

    Args:
        start: the first multiple.
        end: the last.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is negative or not finite.

    Example:
        >>> from vecsweep.schedules import linear
        >>> linear(0, 2)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0. , 0.5, 1. , 1.5, 2. ])

    Reference:
        `SchedLin` of fastai.
    """
    return Schedule(_mix(*_ends(start, end), lambda p: p), name=describe("linear", start=start, end=end))


def cosine(start: float, end: float) -> Schedule:
    """Go from `start` to `end` along half a cosine: `start + (end - start) * (1 - cos(pi * p)) / 2`.

    Args:
        start: the first multiple.
        end: the last.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is negative or not finite.

    Example:
        >>> from vecsweep.schedules import cosine
        >>> cosine(0, 2)([0.0, 0.25, 0.5, 0.75, 1.0]).round(5)
        array([0.     , 0.29289, 1.     , 1.70711, 2.     ])

    Reference:
        `SchedCos` of fastai; Loshchilov and Hutter, SGDR, 2016, https://arxiv.org/abs/1608.03983, equation 5.
    """
    curve = _mix(*_ends(start, end), lambda p: (1 - np.cos(math.pi * p)) / 2)
    return Schedule(curve, name=describe("cosine", start=start, end=end))


def exponential(start: float, end: float) -> Schedule:
    """Go from `start` to `end` in equal ratios: `start * (end / start) ** p`.

    Args:
        start: the first multiple.
        end: the last.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive and finite.

    Example:
        >>> from vecsweep.schedules import exponential
        >>> exponential(1, 2)([0.0, 0.25, 0.5, 0.75, 1.0]).round(5)
        array([1.     , 1.18921, 1.41421, 1.68179, 2.     ])

    Reference:
        `SchedExp` of fastai.
    """
    remedy = "Pass a multiple such as 1e-3: no ratio leads to 0."
    start, end = check_number("start", start, "above 0", remedy), check_number("end", end, "above 0", remedy)
    curve = _pinned(start, end, lambda p: start * (end / start) ** p)
    return Schedule(curve, name=describe("exponential", start=start, end=end))


def polynomial(start: float, end: float, power: float) -> Schedule:
    """Go from `start` to `end` with a power of progress: `start + (end - start) * p**power`.

    Torch's PolynomialLR, which falls as `(1 - p)**power`, is another curve, unless the power is 1.

    Args:
        start: the first multiple.
        end: the last.
        power: of progress.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not finite, an end is negative, or `power` is not positive.

    Example:
        >>> from vecsweep.schedules import polynomial
        >>> polynomial(0, 2, 2)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0.   , 0.125, 0.5  , 1.125, 2.   ])

    Reference:
        `SchedPoly` of fastai.
    """
    power = check_number("power", power, "above 0", "Pass a power such as 2.")
    curve = _mix(*_ends(start, end), lambda p: p**power)
    return Schedule(curve, name=describe("polynomial", start=start, end=end, power=power))


def combine(fractions: Sequence[float], schedules: Sequence[Schedule | Curve]) -> Schedule:
    """Follow one schedule after another; each goes through all its own progress in its part of the run.

    Where one part ends, the next has begun: the value there is the first of the next. If the parts have momentum,
    it is combined likewise.

    Args:
        fractions: of the run, for each schedule; they sum to 1.
        schedules: one for each fraction; functions of progress are taken too.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: A fraction is no number, or a schedule no function of progress.
        ValueError: The fractions do not sum to 1, one is not positive, there are not as many as schedules, or some
            but not all schedules have momentum.

    Example:
        >>> from vecsweep.schedules import combine, cosine, linear
        >>> combine([0.25, 0.75], [linear(0, 1), cosine(1, 0)])([0.0, 0.125, 0.25, 0.625, 1.0])
        array([0. , 0.5, 1. , 0.5, 0. ])

    Reference:
        `combine_scheds` of fastai.
    """
    remedy = "Pass the fraction of the run that each schedule has."
    parts = check_numbers("fractions", fractions, "above 0", remedy)
    if not isinstance(schedules, Sequence):
        raise TypeError(f"`schedules` must be a list of schedules, one for each fraction; got {schedules!r:.80}.")
    followed = [as_function(schedule, "schedules") for schedule in schedules]
    if not parts or len(parts) != len(followed):
        raise ValueError(
            f"`fractions` and `schedules` must be as many, and at least one; got {len(parts)} and {len(followed)}. "
            f"{remedy}"
        )
    if not math.isclose(sum(parts), 1.0, abs_tol=EDGE):
        raise ValueError(f"`fractions` must sum to 1; the sum of {parts} is {sum(parts):.6g}. Divide each by it.")
    momentums = [schedule.momentum for schedule in followed if schedule.momentum is not None]
    if momentums and len(momentums) != len(followed):
        without = next(schedule.name for schedule in followed if schedule.momentum is None)
        raise ValueError(
            f"`schedules` must all have momentum, or none; {without} has none. Give it one, "
            "`dataclasses.replace(schedule, momentum=...)`, or take it from the others, `momentum=None`."
        )
    return Schedule(
        _chain(parts, [schedule.function for schedule in followed]),
        momentum=_chain(parts, momentums) if momentums else None,
        name=describe("combine", fractions=tuple(parts), schedules=tuple(followed)),
    )


def combined_cosine(fraction: float, start: float, middle: float, end: float) -> Schedule:
    """Go from `start` to `middle` along half a cosine in a first part of the run, then to `end` along another.

    Args:
        fraction: of the run that the first part has.
        start: the first multiple.
        middle: the multiple where the parts meet.
        end: the last.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: `fraction` is not between 0 and 1, or another is negative or not finite.

    Example:
        >>> from vecsweep.schedules import combined_cosine
        >>> combined_cosine(0.25, 0.5, 1.0, 0.0)([0.0, 0.25, 0.625, 1.0])
        array([0.5, 1. , 0.5, 0. ])

    Reference:
        `combined_cos` of fastai.
    """
    fraction = check_fraction("fraction", fraction)
    middle = check_number("middle", middle, "of at least 0", _MULTIPLE)
    schedule = combine([fraction, 1 - fraction], [cosine(start, middle), cosine(middle, end)])
    return Schedule(
        schedule.function,
        name=describe("combined_cosine", fraction=fraction, start=start, middle=middle, end=end),
    )


def _ends(start: float, end: float) -> tuple[float, float]:
    checked = (
        check_number(name, value, "of at least 0", _MULTIPLE) for name, value in (("start", start), ("end", end))
    )
    first, last = checked
    return first, last


def _mix(start: float, end: float, weight: Callable[[FloatArray], FloatArray]) -> Curve:
    return _pinned(start, end, lambda p: start + (end - start) * weight(p))


def _pinned(start: float, end: float, between: Curve) -> Curve:
    """Be exact at both ends, where rounding would not."""
    return lambda progress: np.where(progress <= 0, start, np.where(progress >= 1, end, between(progress)))


def _chain(fractions: Sequence[float], curves: Sequence[Curve]) -> Curve:
    """Follow each curve in its part of the run, from its own progress 0 to 1."""
    bounds = np.array([0.0, *np.cumsum(fractions)])
    bounds[-1] = 1.0

    def curve(progress: FloatArray) -> FloatArray:
        part = np.searchsorted(bounds[1:-1] - EDGE, progress, side="right")
        values = np.zeros(np.shape(progress))
        for index, inner in enumerate(curves):
            own = (progress - bounds[index]) / (bounds[index + 1] - bounds[index])
            values = np.where(part == index, inner(np.clip(own, 0.0, 1.0)), values)
        return values

    return curve
