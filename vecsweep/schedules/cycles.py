"""Schedules that rise and fall again and again: warm restarts, and cyclical learning rates.

Lengths are in the unit of `total`, the length of the run: `total=30` for a run of 30 epochs; with `total=1.0` they
are fractions of the run.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.schedules.schedule import EDGE, Schedule, check_length, check_number, check_total, describe


def sgdr(num_cycles: int, cycle_len: float | None = None, cycle_mult: float = 2.0, *, total: float = 1.0) -> Schedule:
    """Fall from 1 to 0 along half a cosine in each cycle, and restart: `(1 + cos(pi * at / length)) / 2`.

    `at` counts from the start of cycle `i = 0, 1, ...`, whose `length` is `cycle_len * cycle_mult**i`. After the last
    cycle the lr stays at 0. A cycle that would begin at the end of the run, or later, does not.

    Args:
        num_cycles: how many.
        cycle_len: the length of the first, in the unit of `total`; None is what makes the cycles fill the run.
        cycle_mult: the length of each over that of the one before.
        total: the length of the run, such as 30 for 30 epochs.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number, or `num_cycles` is not whole.
        ValueError: One is not positive and finite, or `cycle_len` is longer than `total`.

    Example:
        >>> from vecsweep.schedules import sgdr
        >>> sgdr(3)([0.0, 1 / 14, 1 / 7, 2 / 7, 1.0])
        array([1. , 0.5, 1. , 0.5, 0. ])

    Reference:
        Loshchilov and Hutter, SGDR, 2016, https://arxiv.org/abs/1608.03983, equation 5; `fit_sgdr` of fastai.
    """
    remedy = "Pass a number of cycles, such as 3."
    if not isinstance(num_cycles, int | np.integer) or isinstance(num_cycles, bool):
        raise TypeError(f"`num_cycles` must be a whole number; got {num_cycles!r}. {remedy}")
    num_cycles = int(check_number("num_cycles", num_cycles, "above 0", remedy))
    total = check_total(total)
    cycle_mult = check_number("cycle_mult", cycle_mult, "above 0", "Pass a factor such as 2, or 1.")
    relative = cycle_mult ** np.arange(num_cycles)
    first = total / relative.sum() if cycle_len is None else check_length("cycle_len", cycle_len, total)
    lengths = first * relative
    starts = np.array([0.0, *np.cumsum(lengths)[:-1]])
    starts = starts[starts < total * (1 - EDGE)]

    def curve(progress: FloatArray) -> FloatArray:
        at = progress * total
        cycle = np.searchsorted(starts - EDGE * total, at, side="right") - 1
        return (1 + np.cos(np.pi * np.clip((at - starts[cycle]) / lengths[cycle], 0.0, 1.0))) / 2

    name = describe("sgdr", num_cycles=num_cycles, cycle_len=cycle_len, cycle_mult=cycle_mult, total=total)
    return Schedule(curve, name=name)


def triangular(base_lr: float, max_lr: float, step_size: float, *, total: float = 1.0) -> Schedule:
    """Rise and fall in lines between `base_lr` and `max_lr`, again and again.

    With `at = p * total`, `cycle = floor(1 + at / (2 * step_size))` and `x = abs(at / step_size - 2 * cycle + 1)`, the
    value is `base_lr + (max_lr - base_lr) * max(0, 1 - x)`.

    Args:
        base_lr: the lowest multiple; the lowest lr itself if the sweep's `lrs` are `[1.0]`.
        max_lr: the highest.
        step_size: half the length of a cycle, in the unit of `total`.
        total: the length of the run. For iterations it is the number of steps less one: the last step is `total`.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is negative or not finite, a length is 0, `step_size` is longer than `total`, or `base_lr` is
            higher than `max_lr`.

    Example:
        >>> from vecsweep.schedules import triangular
        >>> triangular(0.1, 1.0, 0.25)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0.1, 1. , 0.1, 1. , 0.1])

    Reference:
        Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
    """
    return _cyclical("triangular", base_lr, max_lr, step_size, total, lambda at, cycle: 1.0)


def triangular2(base_lr: float, max_lr: float, step_size: float, *, total: float = 1.0) -> Schedule:
    """Rise and fall as `triangular`, each cycle half as high: `max_lr - base_lr` is divided by `2**(cycle - 1)`.

    Args:
        base_lr: the lowest multiple; the lowest lr itself if the sweep's `lrs` are `[1.0]`.
        max_lr: the highest of the first cycle.
        step_size: half the length of a cycle, in the unit of `total`.
        total: the length of the run. For iterations it is the number of steps less one: the last step is `total`.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: As in `triangular`.
        ValueError: As in `triangular`.

    Example:
        >>> from vecsweep.schedules import triangular2
        >>> triangular2(0.0, 1.0, 0.25)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0. , 1. , 0. , 0.5, 0. ])

    Reference:
        Smith 2015, https://arxiv.org/abs/1506.01186
    """
    return _cyclical("triangular2", base_lr, max_lr, step_size, total, lambda at, cycle: 0.5 ** (cycle - 1))


def exp_range(base_lr: float, max_lr: float, step_size: float, gamma: float, *, total: float = 1.0) -> Schedule:
    """Rise and fall as `triangular`, ever less high: `max_lr - base_lr` is multiplied by `gamma**at`.

    Args:
        base_lr: the lowest multiple; the lowest lr itself if the sweep's `lrs` are `[1.0]`.
        max_lr: the highest, were it not for `gamma`.
        step_size: half the length of a cycle, in the unit of `total`.
        gamma: the factor for each unit of `total`; Smith's unit is the iteration.
        total: the length of the run. For iterations it is the number of steps less one: the last step is `total`.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: As in `triangular`.
        ValueError: As in `triangular`, or `gamma` is not positive and finite.

    Example:
        >>> from vecsweep.schedules import exp_range
        >>> exp_range(0.0, 1.0, 1, gamma=0.5, total=4)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0.   , 0.5  , 0.   , 0.125, 0.   ])

    Reference:
        Smith 2015, https://arxiv.org/abs/1506.01186
    """
    gamma = check_number("gamma", gamma, "above 0", "Pass a factor such as 0.999.")
    return _cyclical("exp_range", base_lr, max_lr, step_size, total, lambda at, cycle: gamma**at, gamma=gamma)


def _cyclical(
    call: str,
    base_lr: float,
    max_lr: float,
    step_size: float,
    total: float,
    scale: Callable[[FloatArray, FloatArray], float | FloatArray],
    **further: Any,
) -> Schedule:
    """Make a triangular schedule; `scale` gives the height of a cycle from where it is and the cycle's number."""
    remedy = "Pass a multiple of the lr, such as 0.1."
    base_lr = check_number("base_lr", base_lr, "of at least 0", remedy)
    max_lr = check_number("max_lr", max_lr, "above 0", remedy)
    if base_lr > max_lr:
        raise ValueError(f"`base_lr` must be at most `max_lr`; got {base_lr:g} and {max_lr:g}. Swap them.")
    total = check_total(total)
    step_size = check_length("step_size", step_size, total)

    def curve(progress: FloatArray) -> FloatArray:
        at = progress * total
        cycle = np.floor(1 + at / (2 * step_size))
        distance = np.abs(at / step_size - 2 * cycle + 1)
        return base_lr + (max_lr - base_lr) * np.maximum(0.0, 1 - distance) * scale(at, cycle)

    arguments = {"base_lr": base_lr, "max_lr": max_lr, "step_size": step_size, **further, "total": total}
    return Schedule(curve, name=describe(call, **arguments))
