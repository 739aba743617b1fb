"""What commands print: the one place of the package that prints. Nothing here imports PyTorch."""

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vecsweep._errors import FallbackWarning
from vecsweep.cli.waiting import tell

Say = Callable[[str], None]


def say_aloud(text: str) -> None:
    """Print what was found, at once.

    Raises:
        BrokenPipeError: nobody reads it any more, as after `| head`.
        ValueError: it cannot be printed.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more, and would complain
        if isinstance(error, BrokenPipeError):
            raise
        raise ValueError(f"What was found cannot be printed: {error.strerror}.") from error


def sayer(arguments: argparse.Namespace) -> Say:
    """What prints for people: nothing does under --json."""
    return (lambda _: None) if arguments.json else say_aloud


def tell_files(files: dict[str, str | None], say: Say) -> None:
    """Say which files were written."""
    for path in filter(None, files.values()):
        say(f"Wrote {path}.")


def print_json(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print what a command found, under --json."""
    if arguments.json:
        say_aloud(to_json(document))


def to_json(document: dict[str, Any]) -> str:
    """Return strict JSON, in which a number that is not finite is null.

    Example:
        >>> print(to_json({"loss": float("nan")}))
        {
          "loss": null
        }
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(document), indent=2, allow_nan=False)


@contextmanager
def fallbacks_in_a_line() -> Iterator[None]:
    """Show vecsweep's own warnings without the line of code that gave them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", FallbackWarning)
        show = warnings.showwarning

        def show_in_a_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, FallbackWarning):
                tell(f"warning: {message}")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_in_a_line
        yield


class _First(logging.Handler):
    """Tells the first record of a run that takes much, and no other: further runs of a command take as much or less."""

    _has_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it, unless one was told, or there is plenty."""
        if not self._has_told and getattr(record, "is_much", True):
            self._has_told = True
            tell(f"{record.getMessage()} ...")


@contextmanager
def memory_in_a_line() -> Iterator[None]:
    """Tell what the members of a command's run take, and what there is, where that is not plenty."""
    logger, handler = logging.getLogger("vecsweep"), _First(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
