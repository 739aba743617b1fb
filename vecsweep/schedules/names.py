"""Schedules by their names, as on the command line: the table of names, and the reader of such names."""

import ast
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from vecsweep._words import did_you_mean
from vecsweep.schedules.annealing import combined_cosine, constant, cosine, exponential, linear, polynomial
from vecsweep.schedules.cycles import exp_range, sgdr, triangular, triangular2
from vecsweep.schedules.decay import exponential_decay, inverse, multi_step, step_decay
from vecsweep.schedules.policies import flat_cosine, one_cycle, warmup
from vecsweep.schedules.schedule import Schedule


def _warmup_constant(fraction: float = 0.1, start: float = 0.01) -> Schedule:
    return warmup(fraction, start, constant())


def _warmup_linear(fraction: float = 0.1, start: float = 0.01, end: float = 0.0) -> Schedule:
    return warmup(fraction, start, linear(1.0, end))


def _warmup_cosine(fraction: float = 0.1, start: float = 0.01, end: float = 0.0) -> Schedule:
    return warmup(fraction, start, cosine(1.0, end))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": partial(linear, start=1.0, end=0.0),
    "cosine": partial(cosine, start=1.0, end=0.0),
    "exponential": partial(exponential, start=1.0, end=1e-3),
    "polynomial": partial(polynomial, start=1.0, end=0.0, power=2.0),
    "combined-cosine": partial(combined_cosine, fraction=0.25, start=0.1, middle=1.0, end=0.0),
    "one-cycle": one_cycle,
    "flat-cosine": flat_cosine,
    "warmup-constant": _warmup_constant,
    "warmup-linear": _warmup_linear,
    "warmup-cosine": _warmup_cosine,
    "sgdr": partial(sgdr, num_cycles=3),
    "step-decay": partial(step_decay, every=1 / 3),
    "multi-step": partial(multi_step, milestones=(0.5, 0.75)),
    "exponential-decay": partial(exponential_decay, gamma=0.5, total=10),
    "inverse": partial(inverse, total=10),
    "triangular": partial(triangular, base_lr=0.1, max_lr=1.0, step_size=0.125),
    "triangular2": partial(triangular2, base_lr=0.1, max_lr=1.0, step_size=0.125),
    "exp-range": partial(exp_range, base_lr=0.1, max_lr=1.0, step_size=0.125, gamma=0.1),
}
"""Schedules by their names on the command line; each can be called without arguments."""

_CALL = re.compile(r"\s*(?P<name>[\w-]+)\s*(?P<arguments>\(.*\))?\s*", re.DOTALL)


def parse(text: str) -> Schedule:
    """Read a schedule from a name in `SCHEDULES`, which may have keyword arguments behind it.

    Args:
        text: such as "one-cycle" or "one-cycle(div=10, pct_start=0.3)"; the values are Python literals. Nothing in
            it is run.

    Returns:
        The schedule: from progress in [0, 1], of any shape, to multiples of the learning rate, of the same shape.

    Raises:
        TypeError: `text` is no text, or an argument has the wrong type.
        ValueError: There is no such schedule or argument, a value is no literal or is out of bounds, or this is
            neither a name nor a call.

    Example:
        >>> from vecsweep.schedules import parse
        >>> parse("one-cycle(div=10, pct_start=0.3)")
        Schedule(one_cycle(div=10, div_final=100000, pct_start=0.3, momentums=(0.95, 0.85, 0.95)))
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be the name of a schedule; got {text!r}. Pass 'cosine', say.")
    match = _CALL.fullmatch(text)
    if match is None:
        raise ValueError(
            f"A schedule must be a name, or a name with arguments in parentheses; got {text!r}. Write, say, "
            "'one-cycle(div=10)'."
        )
    name = match["name"].replace("_", "-")
    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES)
        raise ValueError(f"A schedule must be one of {', '.join(SCHEDULES)}; got {match['name']!r}.{hint}")
    make = SCHEDULES[name]
    arguments = _arguments(match["arguments"] or "()", text)
    known = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"{name} has the arguments {', '.join(known)}; got {argument!r} in {text!r}. Use those.")
    return make(**arguments)


def _arguments(source: str, text: str) -> dict[str, Any]:
    """The keyword arguments of a call, as literals; `text` is what the user wrote."""
    remedy = "Write, say, 'one-cycle(div=10, momentums=None)'."
    try:
        call = ast.parse(f"_{source}", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"The arguments of a schedule must be Python; got {text!r}. {remedy}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"The arguments of a schedule must be given by name; got {text!r}. {remedy}")
    arguments = dict[str, Any]()
    for keyword in call.keywords:
        try:
            arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError as error:
            written = ast.unparse(keyword.value)
            raise ValueError(
                f"The arguments of a schedule must be literals; got {written!r} in {text!r}. {remedy}"
            ) from error
    return arguments
