"""The bounds of cyclical learning rates, read off a range test of accuracy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vecsweep.suggest.curves import validated


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

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: the curve is not as above, or never rises.

    Example:
        >>> import numpy as np
        >>> from vecsweep.suggest import cyclical_bounds
        >>> lrs = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
        >>> cyclical_bounds(lrs, [0.1, 0.1, 0.6, 0.8, 0.79, 0.1])
        CyclicalBounds(base_lr=0.001, max_lr=1.0)

    Reference:
        Smith 2015, section 3.3, takes both by eye from such a curve.
    """
    if not isinstance(tolerance, int | float | np.number) or not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1; got {tolerance!r}. Pass 0.05, say.")
    tested, raw = validated(lrs, accuracies)
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
