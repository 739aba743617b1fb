"""Whole policies made of annealed parts: one-cycle, flat and cosine, warm-up. Lengths are fractions of the run.

References:
    fastai 2, https://docs.fast.ai/callback.schedule.html, whose policies are matched.
"""

import numpy as np

from vecsweep.schedules.annealing import combine, combined_cosine, linear
from vecsweep.schedules.schedule import Curve, Schedule, as_function, check_fraction, check_number, describe


def one_cycle(
    div: float = 25.0,
    div_final: float = 1e5,
    pct_start: float = 0.25,
    momentums: tuple[float, float, float] | None = (0.95, 0.85, 0.95),
) -> Schedule:
    """Rise from `1 / div` to 1 along half a cosine, then fall to `1 / div_final`; momentum goes the other way.

    The member's lr is the highest. Torch's OneCycleLR differs in that it divides the first lr, not the highest, by
    `final_div_factor`, rises for 0.3 of the run, and takes 1e4.

    Args:
        div: the highest lr over the first.
        div_final: the highest lr over the last.
        pct_start: the fraction of the run in which the lr rises.
        momentums: the first, the one at the highest lr, and the last; None leaves momentum alone.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number, or `momentums` are not three.
        ValueError: A divisor is not positive, `pct_start` is not between 0 and 1, or a momentum not in [0, 1).

    Example:
        >>> from vecsweep.schedules import one_cycle
        >>> one_cycle()([0.0, 0.25, 1.0])
        array([4.e-02, 1.e+00, 1.e-05])

    Reference:
        Smith and Topin, Super-convergence, 2017, https://arxiv.org/abs/1708.07120; `fit_one_cycle` of fastai.
    """
    div = check_number("div", div, "above 0", "Pass a ratio, such as 25.")
    div_final = check_number("div_final", div_final, "above 0", "Pass a ratio, such as 1e5.")
    pct_start = check_fraction("pct_start", pct_start)
    momentum = None
    if momentums is not None:
        remedy = "Pass three numbers, such as (0.95, 0.85, 0.95), or None."
        if not isinstance(momentums, tuple | list) or len(momentums) != 3:
            raise TypeError(f"`momentums` must be three numbers; got {momentums!r}. {remedy}")
        first, middle, last = (check_number("momentums", value, "in [0, 1)", remedy) for value in momentums)
        momentum, momentums = combined_cosine(pct_start, first, middle, last).function, (first, middle, last)
    return Schedule(
        combined_cosine(pct_start, 1 / div, 1.0, 1 / div_final).function,
        momentum,
        describe("one_cycle", div=div, div_final=div_final, pct_start=pct_start, momentums=momentums),
    )


def flat_cosine(pct_start: float = 0.75, div_final: float = 1e5) -> Schedule:
    """Stay at 1, then fall to `1 / div_final` along half a cosine.

    Args:
        pct_start: the fraction of the run before the fall.
        div_final: the lr before the fall over the last.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: `pct_start` is not between 0 and 1, or `div_final` is not positive.

    Example:
        >>> from vecsweep.schedules import flat_cosine
        >>> flat_cosine()([0.0, 0.5, 0.75, 1.0])
        array([1.e+00, 1.e+00, 1.e+00, 1.e-05])

    Reference:
        `fit_flat_cos` of fastai.
    """
    div_final = check_number("div_final", div_final, "above 0", "Pass a ratio, such as 1e5.")
    pct_start = check_fraction("pct_start", pct_start)
    curve = combined_cosine(pct_start, 1.0, 1.0, 1 / div_final).function
    return Schedule(curve, name=describe("flat_cosine", pct_start=pct_start, div_final=div_final))


def warmup(fraction: float, start: float, then: Schedule | Curve) -> Schedule:
    """Warm up in a line from `start` to the first value of `then`, and follow `then` over the rest of the run.

    If `then` has momentum, the warm-up keeps its first value.

    Args:
        fraction: of the run that the warm-up has: 5 / 30 for 5 of 30 epochs.
        start: the first multiple: 0.001 / 0.04 warms up from 0.001 if the member's lr is 0.04.
        then: the schedule for the rest, which goes through all its own progress there. With `lrs=[1.0]` and
            `0.04 * schedule` all values are learning rates.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number, or `then` no function of progress.
        ValueError: `fraction` is not between 0 and 1, or `start` is negative or not finite.

    Example:
        >>> from vecsweep.schedules import cosine
        >>> from vecsweep.schedules import warmup
        >>> warmup(5 / 30, 0.001, 0.04 * cosine(1, 0))([0.0, 5 / 30, 1.0])
        array([0.001, 0.04 , 0.   ])

    Reference:
        Goyal et al., Accurate, large minibatch SGD, 2017, https://arxiv.org/abs/1706.02677, section 2.2.
    """
    fraction = check_fraction("fraction", fraction)
    start = check_number("start", start, "of at least 0", "Pass a multiple of the lr, such as 0.1.")
    followed = as_function(then, "then")
    momentum = followed.momentum
    first = np.zeros(1)
    rise = linear(start, float(followed.function(first)[0]))
    if momentum is not None:
        held = float(momentum(first)[0])
        rise = Schedule(rise.function, lambda progress: np.full(np.shape(progress), held))
    schedule = combine([fraction, 1 - fraction], [rise, followed])
    name = describe("warmup", fraction=fraction, start=start, then=followed)
    return Schedule(schedule.function, schedule.momentum, name)
