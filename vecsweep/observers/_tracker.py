"""Tracker: what experiment trackers have in common - a run for each member, with its curves and what came of it."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from vecsweep._types import FloatArray, Hyper
from vecsweep.execution import check_count
from vecsweep.observers.observer import Observer, Run
from vecsweep.results.curves import Curves

Row = tuple[int, dict[str, float]]  # a step, and values by name
Status = Literal["finished", "diverged", "stopped", "interrupted", "failed"]

_FLUSH_S = 5.0


class Tracker(Observer, ABC):
    """A run for each member, named by its lr, schedule, seed and what else it has of its own, all in one group.

    Each has these as its configuration; the curves "train_loss", "lr" and every other hyperparameter that has one,
    against the step, and every metric, against the updates before it; and as fields "final/<metric>", "status"
    ("finished", "diverged", "stopped", "interrupted" or "failed") and "diverged_at" or "stopped_at". NaN is not
    written. A sweep that goes on goes on in the same runs; a branch has a group of its own.

    Args:
        group: of the runs; None for the time.
        max_points: of a curve; of one with more steps every k-th is written.
    """

    def __init__(self, group: str | None, max_points: int) -> None:
        self.group = time.strftime("%Y-%m-%d %H:%M:%S") if group is None else group
        self.max_points = check_count("max_points", max_points)
        self._known: dict[str, str] = {}  # what a tracker calls the run of a name
        self._run = Run((), 0, 0)
        self._opened: list[Any] = []
        self._rows: list[list[Row]] = []
        self._ends: dict[int, tuple[Literal["diverged", "stopped"], int]] = {}
        self._flushed_at = 0.0

    def start(self, run: Run) -> None:
        """Take who trains; runs are opened with the first losses, because processes may be forked before."""
        self._run, self._opened, self._ends = run, [], {}
        self._rows = [[] for _ in run.members]

    def losses(self, step: int, loss: FloatArray, hyper: Hyper) -> None:
        """Keep what some steps did, and hand it on every few seconds."""
        every = max(1, math.ceil(self._run.num_steps / self.max_points))
        first = (self._run.begin - step) % every
        columns = {"train_loss": loss[first::every], **{name: values[first::every] for name, values in hyper.items()}}
        self._take(range(step + first, step + len(loss), every), columns)

    def metrics(self, step: int, values: Mapping[str, FloatArray]) -> None:
        """Keep what was measured."""
        self._take([step], {name: own[None] for name, own in values.items()})

    def member_ended(self, member: int, step: int, reason: Literal["diverged", "stopped"]) -> None:
        """Note where a member came to its end."""
        self._ends[member] = (reason, step)

    def end(self, runs: Curves | None) -> None:
        """Hand on what is left and what came of it, and close the runs."""
        self._flush()
        names = () if runs is None else dict.fromkeys(("train_loss", *runs.metrics))
        finals = {name: runs.final(name) for name in names} if runs is not None else {}
        whole: Status = "failed" if runs is None else "finished" if runs.is_complete else "interrupted"
        for i, opened in enumerate(self._opened):
            fields = {f"final/{name}": float(own[i]) for name, own in finals.items() if math.isfinite(own[i])}
            status = whole
            if i in self._ends:
                status, step = self._ends[i]
                fields[f"{status}_at"] = step
            self._close(opened, fields, status)
        self._opened = []

    def part(self, name: str) -> Self:
        """Return one that writes to a group of its own."""
        other = copy.copy(self)
        other.group = f"{self.group} / {name}"
        other._known = {}
        return other

    def _take(self, steps: Sequence[int], columns: Mapping[str, FloatArray]) -> None:
        """Keep values, each `[step, member]`, of the members that still train."""
        if not self._opened:
            self._open_all()
        for i, rows in enumerate(self._rows):
            for k, step in enumerate(steps):
                values = {name: float(own[k, i]) for name, own in columns.items() if not math.isnan(own[k, i])}
                if values and ("train_loss" in values or "train_loss" not in columns):  # an lr goes on where it ended
                    rows.append((step, values))
        if time.monotonic() - self._flushed_at >= _FLUSH_S:
            self._flush()

    def _open_all(self) -> None:
        for name, settings in zip(self._run.names, self._run.settings, strict=True):
            opened, self._known[name] = self._open(name, settings, self._known.get(name))
            self._opened.append(opened)
        self._flushed_at = time.monotonic()

    def _flush(self) -> None:
        for opened, rows in zip(self._opened, self._rows, strict=False):
            if rows:
                self._log(opened, rows)
        self._rows = [[] for _ in self._run.members]
        self._flushed_at = time.monotonic()

    @abstractmethod
    def _open(self, name: str, settings: Mapping[str, float | str], known: str | None) -> tuple[Any, str]:
        """Begin a run, or go on with one that is known; return it, and what it is known by."""

    @abstractmethod
    def _log(self, opened: Any, rows: Sequence[Row]) -> None:
        """Write some points of a run's curves."""

    @abstractmethod
    def _close(self, opened: Any, fields: Mapping[str, float], status: Status) -> None:
        """Write what a run came to, and close it."""
