"""Answer: which learning rate a run should have, how sure that is, and all that was trained to find out."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import nn

from vecsweep._errors import ResultFileError
from vecsweep._types import FloatArray, Mode
from vecsweep._words import cell, counted
from vecsweep.results._answer_file import pack_answer, unpack_answer
from vecsweep.results._files import Arrays, check_kind, read_result, write_result
from vecsweep.results._html import html_paragraph, html_picture, html_table
from vecsweep.results.sweep import Sweep, without_weights
from vecsweep.results.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Answer:
    """Which learning rate to train with.

    Attributes:
        lr: the steadiest learning rate of the basin, between those that were trained.
        interval: from the lowest to the highest that is no worse than the best by more than `tolerance` and chance.
        schedule: the name of the best, for which this holds.
        hyper: the best of what else was compared, by name.
        doubts: what is doubtful, in words; none where nothing is.
        trials: of all settings, the best first.
        winner: the best of those that were trained.
        metric: what it was judged by, "train_loss" for the mean of a member's last losses.
        mode: whether less or more of it is better.
        start: the metric of untrained weights, about.
        tolerance: the share of what training gains that does not matter.
        noise: the same, of what chance does to the difference of two settings.
        num_steps: of the run that is asked about.
        budget: that was allowed, in runs of one member.
        cost: that was taken.
        runs: all that was trained, a sweep for each part: a scan of each combination, the race, and what was added.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> answer = vs.find_lr(task, num_steps=64)
        >>> answer.interval[0] <= answer.lr <= answer.interval[1], answer.model()
        (True, Linear(in_features=2, out_features=1, bias=True))
    """

    lr: float
    interval: tuple[float, float]
    schedule: str
    hyper: dict[str, float]
    doubts: tuple[str, ...]
    trials: tuple[Trial, ...]
    winner: Trial
    metric: str
    mode: Mode
    start: float
    tolerance: float
    noise: float
    num_steps: int
    budget: float
    cost: float
    runs: tuple[Sweep, ...]
    _train_anew: Callable[[], Sweep] = without_weights  # the winner, through the whole run
    _ended: list[Sweep] = field(default_factory=list, init=False)  # the winner's run, once the rest of it was trained

    def __repr__(self) -> str:
        low, high = self.interval
        doubted = f"; {counted(len(self.doubts), 'doubt')}" if self.doubts else ""
        return f"Answer(lr={self.lr:.3g}, from {low:.3g} to {high:.3g}; {self._run_in_words()}{doubted})"

    def __str__(self) -> str:
        low, high = self.interval
        with_what = "".join(f", {name} {value:.4g}" for name, value in self.hyper.items())
        margin = f"{100 * self.tolerance:.3g}% of what training gains{' and chance' if self.noise else ''}"
        told = (
            f"From {low:.3g} to {high:.3g} it is as good, within {margin}. Found at the cost of {self.cost:.2g} runs."
        )
        early = f" The race ended at {self.winner.rungs[-1]:.0%} of the run, where the budget did."
        if any(own.rungs[-1] > self.winner.rungs[-1] for own in self.trials):
            early = f" Who went on after {self.winner.rungs[-1]:.0%} of the run diverged."
        if self.finished or math.isnan(self.winner.scores[-1]):  # the doubts say that all diverged
            early = ""
        lines = [
            f"lr {self.lr:.3g}{with_what}, for {self._run_in_words()}.",
            told + early,
            *(f"Doubt: {doubt}" for doubt in self.doubts),
            "",
            *self._table(),
        ]
        for name, values in self.mattered().items():
            told = ", ".join(f"{_text(value)}: {_behind(gap)}" for value, gap in values.items())
            lines += ["", f"Behind the best, at the best of the rest, by {name}: {told}"]
        return "\n".join(lines)

    @property
    def finished(self) -> bool:
        """Whether the winner has been trained to the end of the run."""
        return self.winner.rungs[-1] == 1.0 and not math.isnan(self.winner.scores[-1])

    def model(self, *, copy_frozen: bool = False) -> nn.Module:
        """Return a module with the winner's weights, trained to the end of the run; of several seeds, the first's.

        Where the budget ended before that, the rest is trained now, once; where the winner was sent home and all that
        went on diverged, the whole.

        Args:
            copy_frozen: as in `Sweep.model`.

        Raises:
            ValueError: the winner diverged before the end of the run.
        """
        runs, i = self._winners_run()
        return runs.model(i, copy_frozen=copy_frozen)

    def save_model(self, path: str | os.PathLike[str]) -> Path:
        """Write the winner's weights to a safetensors file, as `Sweep.save_model` does.

        Args:
            path: where; ".safetensors" is added if it has no suffix. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            ValueError: as in `model`.
            OSError: the file cannot be written.
        """
        runs, i = self._winners_run()
        return runs.save_model(i, path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the answer to a file, with the curves of all that was trained; its weights are `save_model`'s.

        Args:
            path: where; ".npz" is added if it has no suffix. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written.
        """
        return write_result(path, *pack_answer(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an answer that `save` wrote; nothing in the file is run.

        Args:
            path: where; ".npz" is added if it has no suffix and there is no such file.

        Returns:
            The answer, without weights.

        Raises:
            FileNotFoundError: there is no such file.
            ResultFileError: the file is damaged, foreign, pickled, of a later version, or of another kind.
        """
        return cls._of(path, *read_result(path))

    @classmethod
    def _of(cls, path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> Self:
        """Make an answer of what a file holds."""
        check_kind(path, header, cls.__name__)
        try:
            return cls(**unpack_answer(path, header, arrays))
        except ResultFileError:  # of one of its sweeps
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Find the learning rate again.") from error

    def mattered(self) -> dict[str, dict[str | float, float]]:
        """Return what each thing that was compared besides the lr does: by its name and value, the least gap.

        Gaps are those to the best that started: only its own combination was looked at closer later on.

        Example:
            `answer.mattered()["schedule"]["cosine"]`
        """
        columns: dict[str, dict[str | float, float]] = {}
        started = [trial for trial in self.trials if not trial.is_late]
        alike = {trial.setting for trial in self._alike()}
        least = min((own.gap for own in started if own.setting in alike and math.isfinite(own.gap)), default=0.0)
        for trial in started:
            parts: dict[str, str | float] = {"schedule": trial.setting.schedule, **dict(trial.setting.hyper)}
            for name, value in parts.items():
                column = columns.setdefault(name, {})
                column[value] = min(column.get(value, math.inf), max(0.0, trial.gap - least))
        return {name: column for name, column in columns.items() if len(column) > 1}

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Return the learning rates of the best combination, ascending, and how far each is behind: `[lr]` both."""
        own = self._alike()
        return np.array([trial.setting.lr for trial in own]), np.array([trial.gap for trial in own])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the race: the metric against the learning rate at each rung, the answer and its interval.

        Args:
            ax: where to draw; None makes a figure.

        Returns:
            The axes; `answer.plot().figure.savefig("answer.png")` keeps the picture.
        """
        from vecsweep.plot import plot_race

        held = "".join(f", {name} {value:.4g}" for name, value in self.hyper.items())
        return plot_race(
            self._alike(),
            ax,
            lr=self.lr,
            interval=self.interval,
            start=self.start,
            metric=self.metric,
            mode=self.mode,
            num_steps=self.num_steps,
            title=f"Race for {self._run_in_words()}{held}",
        )

    def _repr_html_(self) -> str:
        told, _, _ = str(self).partition("\n\n")
        columns, *rows = self._rows()
        return html_paragraph(told) + html_table(columns, rows) + html_picture(self.plot(), told)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a report: one HTML file, which opens in a browser without a network.

        It holds the answer in a sentence, what is doubtful, the race, what mattered, the curves and schedules of all
        that was trained, and every member in a table.

        Args:
            path: where; ".html" is added if it has no suffix. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            ImportError: Plotly is not installed.
            OSError: the file cannot be written.
        """
        from vecsweep.report import report_answer

        return report_answer(self, path)

    def _alike(self) -> list[Trial]:
        """The trials of the best combination, by their learning rate."""
        best = self.winner.setting
        own = [t for t in self.trials if (t.setting.schedule, t.setting.hyper) == (best.schedule, best.hyper)]
        return sorted(own, key=lambda trial: trial.setting.lr)

    def _winners_run(self) -> tuple[Sweep, int]:
        """The sweep that the winner was trained in, to its end, and the winner's place there."""
        runs, i = next(
            (runs, i)
            for runs in reversed(self.runs)
            for i, member in enumerate(runs.members)
            if member.setting == self.winner.setting
        )
        num_left = self.num_steps - len(runs.train_loss)
        is_sent_home = runs.members[i].stopped_at is not None
        if runs.members[i].diverged_at is None and (num_left or is_sent_home):
            if not self._ended:
                whole = self._train_anew() if is_sent_home else runs._take([i]).extend(num_steps=num_left)
                self._ended.append(whole)
            runs, i = self._ended[0], 0
        if (step := runs.members[i].diverged_at) is not None:
            raise ValueError(
                f"There is no trained model: at lr {self.winner.setting.lr:.3g} the run diverged at step {step} of "
                f"{self.num_steps}. Train with a lower one, or clip gradients (`max_grad_norm`)."
            )
        return runs, i

    def _run_in_words(self) -> str:
        return f"{self.num_steps} steps of {self.schedule!r}"

    def _rows(self) -> list[tuple[str, ...]]:
        """The table of trials, its header first."""
        rows = [("lr", "with", "trained", self.metric, "behind")]
        several = len({(trial.setting.schedule, trial.setting.hyper) for trial in self.trials}) > 1
        for trial in self.trials:
            _, *rest = trial.setting.parts
            rows.append(
                (
                    f"{trial.setting.lr:.3g}",
                    ", ".join(rest),
                    f"{trial.rungs[-1]:.0%}",
                    cell(trial.scores[-1]),
                    _behind(trial.gap),
                )
            )
        return [tuple(text for k, text in enumerate(row) if k != 1 or several) for row in rows]

    def _table(self) -> list[str]:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _behind(gap: float) -> str:
    """A gap in words; where training gained next to nothing, shares of that are large and say no more."""
    if math.isinf(gap):
        return "diverged"
    return f"{100 * gap:.1f} %" if gap < 10 else "over 1000 %"


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
