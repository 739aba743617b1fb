"""Guarded: an observer that never stops what it observes."""

from collections.abc import Callable, Mapping
from typing import Protocol

from vecsweep._errors import warn_of_trouble
from vecsweep._types import FloatArray, Hyper
from vecsweep.results.curves import Curves


class Writer(Protocol):
    """Who writes what members do, as they do it."""

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take the losses of some steps, and what they ran with."""

    def metrics(self, num_done: int, values: Mapping[str, FloatArray]) -> None:
        """Take what was measured after some steps."""

    def finish(self, runs: Curves) -> None:
        """Take what was trained."""

    def close(self) -> None:
        """Write what is left."""


class Guarded:
    """Hands everything on to a writer until that fails, for want of room on the disk for example; then warns, once.

    Args:
        writer: who is handed it.
        what: it writes, in words.
    """

    def __init__(self, writer: Writer, what: str) -> None:
        self._writer: Writer | None = writer
        self._what = what

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Hand on the losses of some steps."""
        self._try(lambda writer: writer.losses(start, loss, hyper))

    def metrics(self, num_done: int, values: Mapping[str, FloatArray]) -> None:
        """Hand on what was measured."""
        self._try(lambda writer: writer.metrics(num_done, values))

    def finish(self, runs: Curves) -> None:
        """Hand on what was trained."""
        self._try(lambda writer: writer.finish(runs))

    def close(self) -> None:
        """Let the writer write what is left."""
        self._try(lambda writer: writer.close())

    def _try(self, hand_on: Callable[[Writer], None]) -> None:
        if self._writer is None:
            return
        try:
            hand_on(self._writer)
        except Exception as error:  # whatever a writer raises
            self._writer = None
            warn_of_trouble(
                f"{self._what} cannot be written any more, and are not from here on: {error}. The run goes on."
            )
