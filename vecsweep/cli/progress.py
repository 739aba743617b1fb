"""How far members have come, in lines: for logs and pipes, where a progress bar cannot be shown."""

import time
from contextlib import ExitStack
from typing import Literal

from vecsweep._types import FloatArray, Hyper
from vecsweep._words import counted
from vecsweep.cli.waiting import has_bars, tell, told_if_slow
from vecsweep.observers import Observer, Run
from vecsweep.results.curves import Curves

_EVERY_S = 5.0


class ProgressLines(Observer):
    """Tells who trains, once that has taken two seconds, and every few seconds how far they are."""

    def __init__(self, what: str = "") -> None:
        self._what = what
        self._end = 0
        self._num_left = 0
        self._told_at = 0.0
        self._beginning = ExitStack()

    def start(self, run: Run) -> None:
        """Tell who trains, and for how long."""
        self._end, self._num_left = run.begin + run.num_steps, len(run.members)
        self._beginning.close()
        what = f"{self._what}training {counted(len(run.members), 'member')} for {run.num_steps:,} steps"
        self._beginning.enter_context(told_if_slow(what))
        self._told_at = time.monotonic()

    def losses(self, step: int, loss: FloatArray, hyper: Hyper) -> None:
        """Tell where they stand, if it is time."""
        if time.monotonic() - self._told_at >= _EVERY_S:
            done, left = f"{step + len(loss):,} of {self._end:,} steps", counted(self._num_left, "member")
            tell(f"{self._what}{done}, {left} left ...")
            self._told_at = time.monotonic()

    def member_ended(self, member: int, step: int, reason: Literal["diverged", "stopped"]) -> None:
        """Count who is left."""
        self._num_left -= 1

    def end(self, runs: Curves | None) -> None:
        """Be quiet."""
        self._beginning.close()

    def part(self, name: str) -> "ProgressLines":
        """Return one that says which part it speaks of."""
        return ProgressLines(f"{name}: ")


def progress_lines() -> list[Observer]:
    """Who tells of progress: nobody on a terminal, which has bars."""
    return [] if has_bars() else [ProgressLines()]
