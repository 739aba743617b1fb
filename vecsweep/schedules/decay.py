"""Schedules that fall in stages, such as epochs, and keep one value within each.

Lengths are in the unit of `total`, the length of the run: `total=30` for a run of 30 epochs; with `total=1.0` they
are fractions of the run. A run has no stage that begins at its end: its last step is one of its last stage, as it is
for torch's schedulers, although progress there is 1.

Reference:
    torch.optim.lr_scheduler, whose learning rates are those of these schedules at every step.
"""

import math
from collections.abc import Sequence

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.schedules.schedule import EDGE, Schedule, check_length, check_number, check_numbers, check_total, describe


def step_decay(every: float, gamma: float = 0.1, *, total: float = 1.0) -> Schedule:
    """Multiply the lr by `gamma` after every stage: `gamma ** floor(at / every)`, where `at = p * total`.

    Args:
        every: the length of a stage, in the unit of `total`.
        gamma: the factor.
        total: the length of the run, such as 30 for 30 epochs.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive and finite, or `every` is longer than `total`.

    Example:
        >>> from vecsweep.schedules import step_decay
        >>> step_decay(10, gamma=0.5, total=30)([0.0, 0.3, 0.34, 1.0])
        array([1.  , 1.  , 0.5 , 0.25])

    Reference:
        torch.optim.lr_scheduler.StepLR
    """
    total = check_total(total)
    every = check_length("every", every, total)
    gamma = _gamma(gamma)
    return Schedule(
        lambda progress: gamma ** _stage(progress, every, total),
        name=describe("step_decay", every=every, gamma=gamma, total=total),
    )


def multi_step(milestones: Sequence[float], gamma: float = 0.1, *, total: float = 1.0) -> Schedule:
    """Multiply the lr by `gamma` at each milestone: `gamma ** count`, the number of milestones reached.

    Args:
        milestones: in the unit of `total`, ascending, all inside the run.
        gamma: the factor.
        total: the length of the run, such as 30 for 30 epochs.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive and finite, or `milestones` do not ascend or are not below `total`.

    Example:
        >>> from vecsweep.schedules import multi_step
        >>> multi_step([15, 24], total=30)([0.0, 0.4, 0.5, 1.0])
        array([1.  , 1.  , 0.1 , 0.01])

    Reference:
        torch.optim.lr_scheduler.MultiStepLR
    """
    total, gamma = check_total(total), _gamma(gamma)
    remedy = "Pass where the lr falls, in the unit of `total`."
    reached = np.array(check_numbers("milestones", milestones, "above 0", remedy))
    if np.any(np.diff(reached) <= 0):
        raise ValueError(f"`milestones` must ascend; got {reached.tolist()}. Sort them, and drop what is there twice.")
    for milestone in reached[reached >= total * (1 - EDGE)]:
        raise ValueError(
            f"`milestones` must be below `total`, the length of the run; got {milestone:g} with `total={total:g}`. "
            "Drop it, or pass the length of the run in the unit of `milestones`, such as `total=30` for 30 epochs."
        )

    def curve(progress: FloatArray) -> FloatArray:
        count = np.searchsorted(reached - EDGE * total, progress * total, side="right")
        return np.float64(gamma) ** np.asarray(count, dtype=np.float64)

    name = describe("multi_step", milestones=tuple(reached.tolist()), gamma=gamma, total=total)
    return Schedule(curve, name=name)


def exponential_decay(gamma: float, *, total: float) -> Schedule:
    """Multiply the lr by `gamma` after each unit: `gamma ** k` in unit `k = 0, 1, ...`.

    For a decay that is smooth within units, see `exponential`.

    Args:
        gamma: the factor.
        total: the number of units in the run, such as 30 for 30 epochs.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive and finite.

    Example:
        >>> from vecsweep.schedules import exponential_decay
        >>> exponential_decay(0.5, total=4)([0.0, 0.24, 0.26, 1.0])
        array([1.   , 1.   , 0.5  , 0.125])

    Reference:
        torch.optim.lr_scheduler.ExponentialLR
    """
    total, gamma = check_total(total), _gamma(gamma)
    return Schedule(
        lambda progress: gamma ** _stage(progress, 1.0, total),
        name=describe("exponential_decay", gamma=gamma, total=total),
    )


def inverse(power: float = 1.0, *, total: float) -> Schedule:
    """Divide the lr by a power of the unit: `1 / (1 + k)**power` in unit `k = 0, 1, ...`.

    With power 1 that is the lr, a half of it, a third, and so on.

    Args:
        power: of the unit.
        total: the number of units in the run, such as 30 for 30 epochs.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive and finite.

    Example:
        >>> from vecsweep.schedules import inverse
        >>> inverse(total=4)([0.0, 0.24, 0.26, 1.0])
        array([1.  , 1.  , 0.5 , 0.25])

    Reference:
        Robbins and Monro, A stochastic approximation method, 1951, https://doi.org/10.1214/aoms/1177729586, whose
        conditions powers above 1/2 and up to 1 meet.
    """
    total = check_total(total)
    power = check_number("power", power, "above 0", "Pass a power such as 1.")
    return Schedule(
        lambda progress: (1 + _stage(progress, 1.0, total)) ** -power,
        name=describe("inverse", power=power, total=total),
    )


def _gamma(gamma: float) -> float:
    return check_number("gamma", gamma, "above 0", "Pass a factor such as 0.1.")


def _stage(progress: FloatArray, length: float, total: float) -> FloatArray:
    """The number of whole stages before a progress; the last step of the run is still in its last stage."""
    last = math.ceil(total / length - EDGE) - 1
    return np.minimum(np.floor(progress * total / length + EDGE), max(last, 0))
