"""Tally: what the members of a run have done so far, in numbers, and what follows from that.

Here are the curves, who has come to its end, and who is to: what schedules and rules make of a metric that they follow.
Weights, batches and chunks, and the order in which all this happens, are the loop's (`loop.py`).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vecsweep._arrays import blank
from vecsweep._engine.data.layouts import is_finite
from vecsweep._engine.failures import Failures
from vecsweep._engine.groups import Group
from vecsweep._engine.keeping.record import Observer
from vecsweep._engine.ways.contract import Seen, Window
from vecsweep._errors import warn_of_trouble
from vecsweep._types import FloatArray
from vecsweep.evaluation import Evaluation, Pruning, SoFar, Stopping
from vecsweep.plan import Plan


class Tally:
    """The curves of a run, and which of its members still train.

    Args:
        plan: of all members.
        evaluation: when they are evaluated.
        past: metrics that were followed before this run and still are, by name, each `[evaluation, member]`.
        observer: who is told what members do; None for nobody.

    Attributes:
        observer: likewise.
        loss: `[step, member]`; it, `hyper`, `norms`, `metrics`, `diverged_at` and `stopped_at` are as in `Record`, with
            room for the whole run.
        num_evaluated: how many evaluations there have been.
        failures: of members that diverged by an error.
    """

    def __init__(
        self, plan: Plan, evaluation: Evaluation, past: Mapping[str, FloatArray], observer: Observer | None
    ) -> None:
        self._plan = plan
        self._evaluation = evaluation
        self._past = past
        self.observer = observer
        self._schedulers = {i: feedback.start() for i, feedback in plan.feedback.items()}
        self._seeds = np.array(plan.seeds)
        self.loss = blank(*plan.lr.shape)
        self.hyper = {name: values.copy() if self._schedulers else values for name, values in plan.hyper.items()}
        self.norms: dict[str, FloatArray] = {name: blank(*plan.lr.shape) for name in evaluation.recorded}
        self.metrics: dict[str, FloatArray] = {}
        self.num_evaluated = 0
        self.diverged_at = np.full(len(plan.members), -1)
        self.stopped_at = np.full(len(plan.members), -1)
        self.failures = Failures()

    @property
    def is_alive(self) -> NDArray[np.bool_]:
        """Who still trains, `[member]`."""
        return (self.diverged_at < 0) & (self.stopped_at < 0)

    def expect(self, names: Sequence[str]) -> None:
        """Make room for metrics of these names."""
        self.metrics = {name: np.full((self._evaluation.num, len(self._plan.members)), np.nan) for name in names}

    def note_losses(self, group: Group, seen: Seen, start: int) -> tuple[list[int], list[int]]:
        """Note what a chunk did in a window.

        Args:
            group: the chunk.
            seen: of it.
            start: the window's first step.

        Returns:
            The positions in the chunk of those that diverged, and of those that go on.
        """
        loss, alive, norms, failures = seen
        was_alive = self.is_alive[group.members]
        rows = slice(start, start + len(loss))
        self.loss[rows, group.columns] = np.where(was_alive, loss, np.nan)
        for name, norm in norms.items():
            self.norms[name][rows, group.columns] = np.where(was_alive, norm, np.nan)
        is_new = ~alive[-1] & was_alive
        self.diverged_at[np.array(group.members)[is_new]] = start + (~alive[:, is_new]).argmax(axis=0)
        for k in filter(is_new.__getitem__, failures):
            i = group.members[k]
            step, seed = int(self.diverged_at[i]), self._plan.seeds[i]
            self.failures.note(float(self.hyper["lr"][step, i]), seed, self._plan.begin + step, failures[k])
        return np.flatnonzero(is_new).tolist(), np.flatnonzero(alive[-1] & was_alive).tolist()

    def warn(self, window: Window, start: int) -> None:
        """Warn of what went wrong in a window: batches that are not finite, and members that failed."""
        for seed in window[0]:
            own = (self._seeds == seed) & (self.stopped_at < 0)
            at = np.unique(self.diverged_at[own & ((self.diverged_at < 0) | (self.diverged_at >= start))])
            if len(at) == 1 and at[0] >= start and not all(map(is_finite, window[at[0] - start][seed])):
                num = int((self.diverged_at[own] == at[0]).sum())
                who = f"All {num} members" if num > 1 else "The member"
                warn_of_trouble(
                    f"{who} of seed {seed} diverged at step {self._plan.begin + at[0]}, whose batch holds NaN or "
                    "infinity, or no sample: look at the data, not at the learning rates. Steps, and batches, are "
                    "counted from 0."
                )
        self.failures.tell(is_end=False)

    def tell(self, rows: slice) -> None:
        """Show the observer what members have done in some steps."""
        if not self.observer:  # nor one that tells nobody
            return
        own = {name: values[rows] for name, values in self.hyper.items()}
        self.observer.losses(rows.start, self.loss[rows], own)
        for i in np.flatnonzero((self.diverged_at >= rows.start) & (self.diverged_at < rows.stop)).tolist():
            self.observer.ended(i, int(self.diverged_at[i]), has_diverged=True)

    def note_metrics(self, measured: Iterable[tuple[list[int], Mapping[str, FloatArray]]], num_done: int) -> None:
        """Note an evaluation, and show it to the observer.

        Args:
            measured: members, and what was measured of them, by name.
            num_done: after how many updates.
        """
        row, alive = self.num_evaluated, self.is_alive
        for members, values in measured:
            for name, of_members in values.items():
                self.metrics[name][row, members] = of_members
        if "mean_train_loss" in self.metrics:
            begin = ([0, *self._evaluation.steps])[row]
            self.metrics["mean_train_loss"][row] = self.loss[begin:num_done].mean(axis=0)
        for own in self.metrics.values():
            own[row, ~alive] = np.nan
        self.num_evaluated += 1  # one that Ctrl-C broke off does not count
        if self.observer:
            self.observer.metrics(num_done, {name: own[row] for name, own in self.metrics.items()})

    def follow(self, num_done: int) -> None:
        """Let the schedules that follow a metric go on from the last evaluation."""
        alive = self.is_alive
        for i, scheduler in self._schedulers.items():
            if alive[i]:
                scheduler.step(float(self.metrics[self._plan.feedback[i].metric][self.num_evaluated - 1, i]))
                for name, value in scheduler.hyper().items():
                    self.hyper[name][num_done:, i] = value

    def have_stalled(self, stopping: Stopping) -> NDArray[np.bool_]:
        """Who no longer improves, `[member]`."""
        steps = self._evaluation.steps[: self.num_evaluated]
        rows = [row for row, step in enumerate(steps) if step in self._evaluation.followed]
        history = self.metrics[stopping.metric][rows]
        if stopping.metric in self._past:
            history = np.concatenate([self._past[stopping.metric], history])
        return stopping.are_due(history)

    def are_pruned(self, pruning: Pruning, num_done: int) -> NDArray[np.bool_]:
        """Who does not go on after being compared with the others, `[member]`."""
        kept = np.zeros(len(self._plan.members), dtype=np.bool_)
        kept[list(pruning.keep(self.so_far(num_done)))] = True
        return ~kept

    def stop(self, due: NDArray[np.bool_], num_done: int) -> None:
        """Note who trains no further, `[member]`."""
        self.stopped_at[due] = num_done
        if self.observer:
            for i in np.flatnonzero(due).tolist():
                self.observer.ended(i, num_done, has_diverged=False)

    def so_far(self, num_done: int) -> SoFar:
        """Copy what was done in the first steps."""
        return SoFar(
            num_done,
            self.loss[:num_done].copy(),
            {name: values[:num_done].copy() for name, values in self.hyper.items()},
            {name: values[: self.num_evaluated].copy() for name, values in self.metrics.items()},
            self.diverged_at.copy(),
            self.stopped_at.copy(),
        )
