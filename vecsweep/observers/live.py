"""LiveFigure: one figure in a notebook that follows a sweep while it runs. Elsewhere it does nothing."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vecsweep._types import FloatArray, Hyper
from vecsweep.execution import check_name
from vecsweep.observers.observer import Observer, Run
from vecsweep.results._html import html_picture
from vecsweep.results.curves import Curves

_EVERY_S = 1.0  # no more often; and drawing takes no more than a tenth of the time
_SHARE = 0.1


class LiveFigure(Observer):
    """Draw the curves of all members into one figure of the notebook's cell, about once a second.

    The figure is that of `runs.plot()`. What goes on from a sweep goes on in the same curves, in the cell that it is
    called from; the scan and the race of `find_lr` have a figure each. Outside of notebooks nothing is shown.

    Args:
        metric: the name of what is drawn; None for "val_loss" as soon as there is one, else "train_loss".

    Raises:
        TypeError: `metric` is no name.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> from vecsweep.observers import LiveFigure
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> task = vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=optimizer)
        >>> runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=2, callbacks=[LiveFigure()])
    """

    def __init__(self, metric: str | None = None) -> None:
        check_name("metric", metric)
        self._metric = metric
        self._handle: Any = None  # of the figure in the cell; None where there is no notebook
        self._run = Run((), 0, 0)
        self._loss: FloatArray = np.empty((0, 0))  # [step, member], of all steps that are planned
        self._lr: FloatArray = np.empty((0, 0))  # likewise
        self._num_done = 0
        self._measured: dict[int, dict[str, FloatArray]] = {}  # by the updates before it
        self._next_s = 0.0  # when to draw again

    def part(self, name: str) -> "LiveFigure":
        """Return what draws a part of the work: a figure of its own."""
        return LiveFigure(self._metric)

    def start(self, run: Run) -> None:
        """Make room for the steps that will come."""
        if not _is_in_notebook():
            return
        from IPython.display import HTML, display

        goes_on = run.begin == self._num_done and len(run.members) == self._loss.shape[1]
        earlier = (self._loss[: run.begin], self._lr[: run.begin]) if goes_on else None
        shape = (run.begin + run.num_steps, len(run.members))
        self._loss, self._lr = np.full(shape, np.nan), np.full(shape, np.nan)
        if earlier is not None:
            self._loss[: run.begin], self._lr[: run.begin] = earlier
        else:
            self._measured = {}
        self._run, self._num_done = run, run.begin
        self._handle = display(HTML(""), display_id=True)

    def losses(self, step: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take what some steps did."""
        if self._handle is not None:
            self._loss[step : step + len(loss)] = loss
            self._lr[step : step + len(loss)] = hyper["lr"]
            self._num_done = step + len(loss)
            self._draw()

    def metrics(self, step: int, values: Mapping[str, FloatArray]) -> None:
        """Take what was measured."""
        if self._handle is not None and values:
            self._measured[step] = dict(values)
            self._draw()

    def member_ended(self, member: int, step: int, reason: Literal["diverged", "stopped"]) -> None:
        """Mark where a member came to its end."""
        if self._handle is not None:
            members = list(self._run.members)
            own = members[member]
            members[member] = own._replace(diverged_at=step) if reason == "diverged" else own._replace(stopped_at=step)
            self._run = Run(tuple(members), self._run.begin, self._run.num_steps, self._run.steps_per_epoch)

    def end(self, runs: Curves | None) -> None:
        """Draw all that was done."""
        if self._handle is not None and self._num_done:
            self._draw(is_last=True)
        self._handle = None

    def _draw(self, *, is_last: bool = False) -> None:
        """Draw what there is, if it is time to."""
        started = time.monotonic()
        if not self._num_done or (started < self._next_s and not is_last):
            return
        from IPython.display import HTML

        from vecsweep.plot import plot_sweep

        told = self._so_far()
        metric = self._metric if self._metric in {*told.metrics, "train_loss", "lr"} else None
        self._handle.update(HTML(html_picture(plot_sweep(told, metric=metric), f"Curves of {told!r}")))
        took_s = time.monotonic() - started
        self._next_s = started + max(_EVERY_S, took_s / _SHARE)

    def _so_far(self) -> Curves:
        """The curves of the steps that are done."""
        names = list(next(reversed(self._measured.values()))) if self._measured else []
        return Curves(
            members=self._run.members,
            lr=self._lr[: self._num_done],
            train_loss=self._loss[: self._num_done],
            metrics={name: np.stack([values[name] for values in self._measured.values()]) for name in names},
            evaluated_at=np.array(list(self._measured), dtype=np.int64),
            steps_per_epoch=self._run.steps_per_epoch,
            engine="",
            duration_s=0.0,
            is_complete=self._num_done == len(self._loss),
        )


def _is_in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook, which then has IPython."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None
