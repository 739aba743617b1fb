"""Curves of loss against lr before a rule reads them: checked, smoothed, trimmed."""

import math

import numpy as np
from numpy.typing import ArrayLike

from vecsweep._types import FloatArray

_EXPLODED = 4.0  # times the first loss, above the lowest


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
        >>> from vecsweep.suggest import smooth
        >>> smooth([4.0, float("nan"), 1.0], smoothing=0.5).tolist()
        [4.0, nan, 2.0]

    Reference:
        The debiasing is that of Adam, https://arxiv.org/abs/1412.6980, section 3.
    """
    if not isinstance(smoothing, int | float | np.number) or not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1); got {smoothing!r:.80}. Pass a weight such as 0.9, or 0.")
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


def until_explosion(losses: FloatArray) -> FloatArray:
    """Return a copy of the losses of a ramp with NaN after the first that has exploded.

    That is the first above the lowest before it by four times the magnitude of the first. The lr only rises from there
    on, so that what follows says nothing of smaller ones.

    Args:
        losses: `[lr]`, in the order of rising learning rates.

    Example:
        >>> until_explosion(np.array([2.0, 1.0, 9.5, 3.0])).tolist()
        [2.0, 1.0, 9.5, nan]

    Reference:
        `Learner.lr_find` of fastai 2 stops there, at four times the lowest loss.
    """
    lowest_before = np.fmin.accumulate(losses)[:-1]
    has_exploded = losses[1:] > lowest_before + _EXPLODED * np.abs(losses[0])
    end = 2 + int(np.argmax(has_exploded)) if has_exploded.any() else len(losses)
    return np.where(np.arange(len(losses)) < end, losses, np.nan)


def trim(lrs: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Leave out what a ramp's rules should not read, as fastai's `lr_find` does before it asks them.

    Of the points up to where the losses end - at the first that is not finite - the first tenth of the whole curve and
    the last five are left out: at the start the average has seen little, and at the end it explodes. A curve of which
    less than two points would remain stays whole.

    Args:
        lrs: `[lr]`, positive and strictly ascending.
        losses: `[lr]`.

    Returns:
        The rest of both.

    Example:
        >>> lrs, losses = trim(np.geomspace(1e-7, 1, 30), [3.0] * 20 + [float("nan")] * 10)
        >>> len(lrs), len(losses)
        (12, 12)

    Reference:
        `Learner.lr_find` of fastai 2, which also cuts at the first NaN.
    """
    tested, raw = validated(lrs, losses)
    is_finite = np.isfinite(raw)
    end = len(raw) if is_finite.all() else int(np.argmin(is_finite))
    rest = slice(len(raw) // 10, max(0, end - 5))
    return (tested[rest], raw[rest]) if rest.stop - rest.start > 1 else (tested, raw)


def validated(lrs: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return a curve as arrays, or raise ValueError: it is not one."""
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
