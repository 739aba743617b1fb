"""How settings look on a page: the first thing that varies is told by colour, all else by the dashes of the line.

Colours are roles, which the page turns into those of a light or a dark ground: "@0" to "@6" for things that differ,
"@scale:0" to "@scale:1" for numbers in order. In grey, dashes and names tell them apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vecsweep.results.ranking import Setting
from vecsweep.results.views import describe_value, find_varying, value_of

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "9px,3px,2px,3px,2px,3px", "2px,5px")
_NUM_COLORS = 7


class Look(NamedTuple):
    """How a setting is drawn, and what it is called in the legend."""

    name: str
    color: str
    dash: str


def choose_looks(settings: Sequence[Setting], *, without: Sequence[str] = ()) -> dict[Setting, Look]:
    """Choose how settings are drawn.

    Args:
        settings: which.
        without: what needs no telling apart, because an axis does that.
    """
    varying = {name: values for name, values in find_varying(settings).items() if name not in without}
    if not varying:
        return {setting: Look(str(setting) if not without else "all", "@0", "solid") for setting in settings}
    (colored, values), *others = varying.items()
    styled = [name for name, _ in others]
    combinations = list(dict.fromkeys(tuple(value_of(own, name) for name in styled) for own in settings))
    looks = {}
    for own in settings:
        place = values.index(value_of(own, colored))
        is_distinct = colored == "schedule" or len(values) <= 2
        color = f"@{place % _NUM_COLORS}" if is_distinct else f"@scale:{place / (len(values) - 1):.3f}"
        row = combinations.index(tuple(value_of(own, name) for name in styled)) if styled else 0
        row += place // _NUM_COLORS if is_distinct else 0
        name = ", ".join(describe_value(name, value_of(own, name)) for name in varying)
        looks[own] = Look(name, color, DASHES[row % len(DASHES)])
    return looks
