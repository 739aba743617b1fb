"""Turns of phrase that messages share."""

import difflib
import math
from collections.abc import Iterable


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """Return a question that ends a message, with a space before it; nothing where no known name is close.

    Example:
        >>> did_you_mean("valey", ["lowest", "valley"])
        " Did you mean 'valley'?"
    """
    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def counted(number: int, noun: str) -> str:
    """Return a number of things.

    Example:
        >>> counted(1, "member"), counted(3, "member")
        ('1 member', '3 members')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cell(value: float) -> str:
    """Return a number as tables have it; a dash where there is none.

    Example:
        >>> cell(0.123456), cell(float("nan"))
        ('0.1235', '-')
    """
    return f"{value:.4g}" if math.isfinite(value) else "-"
