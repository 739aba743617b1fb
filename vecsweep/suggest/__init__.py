"""Suggestions: learning rates read off curves. Nothing here trains or plots.

`suggest` checks a curve of loss against lr, leaves out what diverged, applies a rule and says what is doubtful about
the answer.
"""

from vecsweep.suggest.curves import smooth, trim
from vecsweep.suggest.cyclical import CyclicalBounds, cyclical_bounds
from vecsweep.suggest.rules import (
    RAMP_RULES,
    RULES,
    Rule,
    lowest,
    minimum,
    quarter_of_largest_stable,
    slide,
    steepest,
    third_of_largest_stable,
    valley,
)
from vecsweep.suggest.suggestion import RAMP_SMOOTHING, Suggestion, suggest

__all__ = [
    "RAMP_RULES",
    "RAMP_SMOOTHING",
    "RULES",
    "CyclicalBounds",
    "Rule",
    "Suggestion",
    "cyclical_bounds",
    "lowest",
    "minimum",
    "quarter_of_largest_stable",
    "slide",
    "smooth",
    "steepest",
    "suggest",
    "third_of_largest_stable",
    "trim",
    "valley",
]
