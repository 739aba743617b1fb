"""A suggestion: what a rule reads off a curve of loss against lr, and what is doubtful about it."""

import math
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from vecsweep._words import did_you_mean
from vecsweep.suggest.curves import smooth, trim, until_explosion, validated
from vecsweep.suggest.doubts import curve_doubts, lr_doubts
from vecsweep.suggest.rules import RULES, SHOWN_DIVERGED, Rule

# Of a ramp of 100 steps over 7 decades: it lags a third of a decade behind. A grid has averages already.
RAMP_SMOOTHING = 0.8


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A learning rate read off a curve, and what is doubtful about it; `float(suggestion)` is the lr.

    Example:
        >>> import vecsweep as vs
        >>> print(vs.Suggestion(lr=0.0398, rule="valley", loss=0.412))
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


def suggest(
    lrs: ArrayLike,
    losses: ArrayLike,
    rule: str | Rule = "valley",
    *,
    smoothing: float = 0.0,
    is_trimmed: bool = False,
) -> Suggestion:
    """Suggest a learning rate from a curve of loss against lr.

    The losses are smoothed, points whose loss is not finite (they diverged) are left out, and the rule is
    applied to a copy of what remains. Only the two rules on the largest stable lr see the whole curve.

    Args:
        lrs: `[lr]`, positive and strictly ascending.
        losses: `[lr]`, one per lr; NaN or infinite where training diverged.
        rule: A name in `RULES`, or a function `(lrs, losses) -> lr`.
        smoothing: Weight of the past in [0, 1), along the lr axis, as in `smooth`.
        is_trimmed: Whether the rule reads the curve without its ends, as `until_explosion` and `trim` leave it; for
            ramps. Doubts are about the whole of it, and so are the rules on the largest stable lr.

    Returns:
        The learning rate, the rule, the loss there, and what is doubtful.

    Raises:
        ValueError: If the curve or `smoothing` is not as above, if no rule has that name, if every lr
            diverged, or if the rule's answer is not positive and finite.
        TypeError: If `rule` is neither a name nor callable, or its answer is not a number.

    Example:
        >>> import numpy as np
        >>> from vecsweep.suggest import suggest
        >>> lrs = np.geomspace(1e-5, 1.0, 11)
        >>> losses = [2.3, 2.3, 2.2, 2.0, 1.7, 1.2, 0.8, 0.7, 0.9, 2.5, float("nan")]
        >>> print(suggest(lrs, losses))
        0.000316 (valley; loss 2)
    """
    name, function = _resolve(rule)
    tested, raw = validated(lrs, losses)
    curve = smooth(raw, smoothing)
    is_finite = np.isfinite(curve)
    if not is_finite.any():
        raise ValueError(
            f"`losses` must be finite for at least one lr; every learning rate diverged, all {tested.size} "
            f"from {tested[0]:.3g} up. Lower `start_lr` below {tested[0]:.3g}; if that does not help, look for "
            "NaN in the data and the loss, and for batches whose losses differ so much that a larger "
            "`divergence_factor` is needed."
        )
    if function in SHOWN_DIVERGED:
        read = tested, curve
    elif is_trimmed:
        rest, losses_left = trim(tested, smooth(until_explosion(raw), smoothing))
        read = rest[np.isfinite(losses_left)], losses_left[np.isfinite(losses_left)]
    else:
        read = tested[is_finite], curve[is_finite]
    lr = _checked(function(*read), name)
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
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}; got {rule!r}.{did_you_mean(rule, RULES)}")
    return rule, RULES[rule]


def _checked(answer: Any, name: str) -> float:
    remedy = "Return a number, such as one of the `lrs` it is given."
    if not isinstance(answer, SupportsFloat) or getattr(answer, "shape", ()) != ():
        raise TypeError(f"The rule `{name}` must return one number; it returned {answer!r}. {remedy}")
    lr = float(answer)
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"The rule `{name}` must return a positive finite lr; it returned {lr}. {remedy}")
    return lr
