"""RangeTest: a sweep read as one curve of loss against learning rate."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vecsweep._types import FloatArray, Method, Mode, PlotKind
from vecsweep.execution import check_count
from vecsweep.results._html import html_paragraph, html_picture
from vecsweep.results.sweep import Sweep
from vecsweep.schedules import parse
from vecsweep.schedules.schedule import as_function
from vecsweep.suggest import RAMP_RULES, RAMP_SMOOTHING, RULES, Rule, Suggestion, suggest
from vecsweep.suggest.horizon import shift_for

_LEAST_GAIN = 0.95  # of what the smallest lr comes to; below it, another has done better
_NEAR = 3.0  # times the first loss; further above it, the smallest lr is no small one

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RangeTest(Sweep):
    """What an LR range test found: a sweep, read as one curve of loss against learning rate.

    Attributes:
        method: "grid", a member for each learning rate, or "ramp", a learning rate for each step.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> found = vs.range_test(task, start_lr=1e-3, end_lr=10, num_lrs=5, num_steps=20)
        >>> found.lrs.round(3).tolist(), len(found.scores)
        ([0.001, 0.01, 0.1, 1.0, 10.0], 5)
    """

    method: Method

    @property
    def rules(self) -> list[str]:
        """The names of the rules that can read it."""
        return [name for name, rule in RULES.items() if self.method == "ramp" or rule not in RAMP_RULES]

    @property
    def lrs(self) -> FloatArray:
        """The learning rates tested, `[lr]`, ascending."""
        if self.method == "ramp":
            return self.lr[:, 0]
        return np.array(list(self._by_lr()))

    @property
    def scores_by_seed(self) -> FloatArray:
        """What `scores` is the mean of, `[lr, seed]`; NaN where a selection has no such member."""
        if self.method == "ramp":
            return self.train_loss
        of_members = self.final("train_loss")
        found = {(member.lr, member.seed): score for member, score in zip(self.members, of_members, strict=True)}
        seeds = dict.fromkeys(member.seed for member in self.members)
        return np.array([[found.get((lr, seed), np.nan) for seed in seeds] for lr in self.lrs.tolist()])

    @property
    def scores(self) -> FloatArray:
        """The loss that each learning rate leads to, `[lr]`, averaged over seeds; NaN where a seed diverged.

        A spike that came back is no divergence; see `divergence_factor` in `Execution`.

        Of a grid it is the mean of each member's last tenth of losses, which are comparable because the batches are
        common. Of a ramp it is the loss at the step that tried that learning rate.
        """
        if self.method == "ramp":
            return self.scores_by_seed.mean(axis=1)
        own = self.final("train_loss")
        return np.array([own[members].mean() for members in self._by_lr().values()])

    def suggest(
        self,
        rule: str | Rule | None = None,
        *,
        smoothing: float | None = None,
        horizon: int | None = None,
        schedule: Any = "constant",
    ) -> Suggestion:
        """Read a learning rate off the curve of scores; of a ramp without its ends, as `vecsweep.suggest.trim` has it.

        Of a ramp with several seeds it is the geometric mean of what each seed's curve says.

        Args:
            rule: a name in `vecsweep.suggest.RULES`, or a function `(lrs, losses) -> lr`; None is "basin" for a grid,
                which has a run for each learning rate, and "minimum", a tenth of where the loss is lowest, for a ramp,
                whose loss lags behind the rising lr.
            smoothing: weight of the past in [0, 1); None is 0 for a grid, and for a ramp 0.8.
            horizon: the steps of the run that the learning rate is for. A grid's is then shifted by what is known of
                how the best moves with the length of a run and with annealing, and `rule` says by how much.
                `vecsweep.find_lr` asks the run itself. None for no shift.
            schedule: what the run's learning rate follows, a function of progress, as in `vecsweep.sweep`.

        Returns:
            The learning rate, the rule, the loss there, and what is doubtful.

        Raises:
            ValueError: every learning rate diverged, there is no such rule, or it is one for ramps alone.

        Example:
            `found.suggest().lr`
        """
        is_ramp = self.method == "ramp"
        if rule is None:
            rule = "minimum" if is_ramp else "basin"
        if smoothing is None:
            smoothing = RAMP_SMOOTHING if is_ramp else 0.0
        check_rule(rule, self.method)
        shift = 1.0 if horizon is None else self._shift(horizon, schedule)
        of_all = suggest(self.lrs, self.scores, rule, smoothing=smoothing, is_trimmed=is_ramp)
        of_all = replace(of_all, doubts=(*of_all.doubts, *self._doubts_of_start()))
        if shift != 1.0:
            told = suggest(self.lrs, self.scores, lambda *_: shift * of_all.lr, smoothing=smoothing)
            return replace(told, rule=f"{of_all.rule}, times {shift:.2g} for {horizon} steps of {_name_of(schedule)}")
        if not is_ramp or self.scores_by_seed.shape[1] == 1:
            return of_all
        of_seeds = [suggest(self.lrs, own, rule, smoothing=smoothing, is_trimmed=True) for own in self.scores_by_seed.T]
        mean = float(np.exp(np.mean([np.log(own.lr) for own in of_seeds])))
        told = suggest(self.lrs, self.scores, lambda *_: mean, smoothing=smoothing, is_trimmed=True)
        return replace(told, rule=of_all.rule)

    def _doubts_of_start(self) -> list[str]:
        """Say if no learning rate of a grid gets anywhere."""
        if self.method == "ramp" or not len(self.train_loss):
            return []
        start, least, best = float(np.nanmean(self.train_loss[0])), self.scores[0], float(np.nanmin(self.scores))
        if not 0 < _LEAST_GAIN * least < best or least > _NEAR * start:
            return []
        doubt = (
            f"No learning rate does better than the smallest, at which the loss begins at {start:.3g} and comes to "
            f"{least:.3g}. The model may be trained already: pass one with fresh weights. Else test larger learning "
            "rates, or more steps."
        )
        return [doubt]

    def _shift(self, horizon: int, schedule: Any) -> float:
        """What a suggestion is multiplied by for a longer run."""
        check_count("horizon", horizon)
        if self.method == "ramp":
            raise ValueError(
                "`horizon` belongs to grids, whose members are runs of a known length; this is a ramp. Test with "
                '`method="grid"`, or call `vecsweep.find_lr`.'
            )
        function = parse(schedule) if isinstance(schedule, str) else as_function(schedule, "schedule")
        return shift_for(len(self.train_loss), horizon, anneals=function.anneals)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        kind: PlotKind | Literal["range test"] = "range test",
        metric: str | None = None,
        mode: Mode | None = None,
    ) -> "Axes":
        """Draw the loss against the learning rate, with suggestions, divergence and the band over seeds.

        Args:
            ax: where to draw; None makes a figure.
            kind: another kind of picture, as in `Sweep.plot`.
            metric: likewise.
            mode: likewise.

        Returns:
            The axes; `found.plot().figure.savefig("lr.png")` keeps the picture.
        """
        if kind != "range test":
            return Sweep.plot(self, ax, kind=kind, metric=metric, mode=mode)
        from vecsweep.plot import plot_range_test

        return plot_range_test(self, ax)

    def _repr_html_(self) -> str:
        try:
            told = f"Suggestion: {self.suggest()}"
        except ValueError as error:  # every learning rate diverged
            told = str(error)
        return html_paragraph(f"{self!r}\n{told}") + html_picture(self.plot(), f"Loss against learning rate. {told}")

    def to_html(self, path: str | os.PathLike[str], *, metric: str | None = None, mode: Mode | None = None) -> Path:
        """Write a report: one HTML file, which opens in a browser without a network.

        It holds the suggestion in a sentence, the loss against the lr with the basin, the cliff and what each rule
        says, the curves behind it, and all members in a table.

        Args:
            path: where; ".html" is added if it has no suffix. A file that is there is replaced at once.
            metric: to report it as a sweep that is ranked by this; None as a range test.
            mode: likewise, as in `best`.

        Returns:
            Where it was written.

        Raises:
            ImportError: Plotly is not installed.
            ValueError: there is no such metric, or its name does not tell whether less or more is better.
            OSError: the file cannot be written.
        """
        if metric is not None or mode is not None:
            return Sweep.to_html(self, path, metric=metric, mode=mode)
        from vecsweep.report import report_range_test

        return report_range_test(self, path)

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return (*Sweep._header_names(), "method")


def check_rule(rule: str | Rule | None, method: Method) -> None:
    """Raise ValueError if a rule does not read what this method gives."""
    function = RULES.get(rule) if isinstance(rule, str) else rule
    if method == "grid" and function in RAMP_RULES:
        raise ValueError(
            f"The rule {getattr(rule, '__name__', rule)!r} reads ramps: it looks for where the loss falls, which on a "
            "grid is far below the best learning rate. Take 'lowest' or 'basin', or test with `method=\"ramp\"`."
        )


def _name_of(schedule: Any) -> str:
    return repr(schedule if isinstance(schedule, str) else str(getattr(schedule, "name", "its own schedule")))
