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


def sized(num_bytes: float) -> str:
    """Return a number of bytes, for people.

    Example:
        >>> sized(640), sized(1_572_864), sized(13_100_000_000)
        ('640 B', '1.5 MiB', '12.2 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def cell(value: float) -> str:
    """Return a number as tables have it; a dash where there is none.

    Example:
        >>> cell(0.123456), cell(float("nan"))
        ('0.1235', '-')
    """
    return f"{value:.4g}" if math.isfinite(value) else "-"
