"""Curves: what members did, as matrices [step, member] and [evaluation, member], and what that says. Frozen.

Losses are stored as they were, before each update and without smoothing.

Not here: weights, pictures and files (`sweep.py`), curves of loss against learning rate (`range_test.py`), and the long
format of curves (`records.py`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from vecsweep._arrays import column_blocks
from vecsweep._types import FloatArray, Hyper, IntArray, Mode
from vecsweep._words import counted, did_you_mean
from vecsweep.execution import check_name, is_number
from vecsweep.results.member import MemberRecord
from vecsweep.results.ranking import Band, Ranking, Repeat, group_by_setting, mode_of, rank
from vecsweep.results.records import column_names, rows_of
from vecsweep.suggest.basin import TOLERANCE, Basin, read_basin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # arrays are neither equal nor short
class Curves:
    """What members did.

    Attributes:
        members: one record each.
        lr: `[step, member]`, the learning rate that each update used.
        train_loss: `[step, member]`, before each update; NaN after a member diverged or stopped.
        metrics: by name, such as "val_loss", each `[evaluation, member]`; NaN likewise.
        evaluated_at: `[evaluation]`, the updates that had been taken before each.
        hyper: other hyperparameters that members have for themselves, by name, each `[step, member]`.
        norms: what was recorded of each step, by name, each `[step, member]`: "grad_norm", "update_norm". NaN where no
            update was taken.
        phases: the steps at which training was taken up, the first of them 0.
        steps_per_epoch: updates in one pass over the batches; None if nobody counted.
        engine: how the members were stepped, in words.
        duration_s: how long the run took, in seconds.
        is_complete: False when Ctrl-C stopped the run early.
        in_doubt_from: the step from which on the curves may be wrong, because the step that was traced turned out later
            to give other numbers than the eager one; None if it never did.
        about: where it comes from, by name: the call, the versions of vecsweep, torch and Python, the device.
        folds: of cross-validation; of a member's `seed`, `seed % folds` is the fold then, and `seed // folds` the seed.
            None where there are none.
    """

    members: tuple[MemberRecord, ...]
    lr: FloatArray
    train_loss: FloatArray
    metrics: dict[str, FloatArray] = field(default_factory=dict)
    evaluated_at: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    hyper: Hyper = field(default_factory=dict)
    norms: dict[str, FloatArray] = field(default_factory=dict)
    phases: tuple[int, ...] = (0,)
    steps_per_epoch: float | None
    engine: str
    duration_s: float
    is_complete: bool = True
    in_doubt_from: int | None = None
    about: dict[str, str] = field(default_factory=dict)
    folds: int | None = None

    def __repr__(self) -> str:
        rows = [member.as_row() for member in self.members]
        names = [name for name in rows[0] if not name.endswith("_at")]
        counts = [self._counted(len({row[name] for row in rows}), name) for name in names]
        length = "" if self.is_complete else ", interrupted"
        length += "" if self.in_doubt_from is None else f", in doubt from step {self.in_doubt_from}"
        what = f"{counted(len(rows), 'member')}: {', '.join(counts)}; {counted(len(self.train_loss), 'step')}{length}"
        return f"{type(self).__name__}({what}; {', '.join(('train_loss', *self.metrics))})"

    @property
    def repeat(self) -> Repeat:
        """What the members of a setting differ by, over which means are taken: "seed", or "fold"."""
        return "seed" if self.folds is None else "fold"

    @property
    def diverged_at(self) -> IntArray:
        """The step at which each member diverged, `[member]`; -1 if it did not."""
        return np.array([-1 if m.diverged_at is None else m.diverged_at for m in self.members])

    @property
    def stopped_at(self) -> IntArray:
        """The updates after which each member was stopped, `[member]`; -1 if it went on."""
        return np.array([-1 if m.stopped_at is None else m.stopped_at for m in self.members])

    def curve(self, name: str) -> tuple[IntArray, FloatArray]:
        """Return a curve of every member, and the updates that had been taken before each of its values.

        Args:
            name: "train_loss", "lr", one of `hyper`, of `norms`, or of `metrics`.

        Returns:
            `[step]` and `[step, member]`; of a metric, `[evaluation]` and `[evaluation, member]`.

        Raises:
            ValueError: there is no such curve.
        """
        check_name("metric", name)
        steps = np.arange(len(self.train_loss))
        if name in self.metrics:
            return self.evaluated_at, self.metrics[name]
        by_step = {"train_loss": self.train_loss, "lr": self.lr, **self.hyper, **self.norms}
        if name not in by_step:
            known = [*self.metrics, *by_step]
            hint = did_you_mean(name, known) + ("" if self.metrics else " Validation needs `val_batches` in the task.")
            raise ValueError(f"`metric` must be one of {', '.join(known)}; got {name!r}.{hint}")
        return steps, by_step[name]

    def final(self, metric: str | None = None) -> FloatArray:
        """Return what each member came to, `[member]`; NaN if it diverged.

        Of a metric it is the last value; of a member that was stopped, the last before that. Of "train_loss" it is the
        mean of the last tenth of the member's losses.

        Args:
            metric: None for "val_loss" if there is one, else "train_loss".

        Raises:
            ValueError: there is no such metric.
        """
        metric = self._metric(metric)
        _, values = self.curve(metric)
        final = np.full(len(self.members), np.nan)
        for block in column_blocks(len(self.members)):
            columns = np.array(values[:, block].T)
            for i, column in enumerate(columns, start=block.start):
                own = column[~np.isnan(column)]
                if self.members[i].diverged_at is None and own.size:
                    final[i] = own[-max(1, len(own) // 10) :].mean() if metric == "train_loss" else own[-1]
        return final

    def best(self, metric: str | None = None, mode: Mode | None = None) -> int:
        """Return the index of the member whose final value is best.

        Args:
            metric: as in `final`.
            mode: "min" or "max"; None to go by the metric's name: less is better of a loss, more of an accuracy.

        Raises:
            ValueError: no member has a value, because all diverged or the metric is NaN; or the name does not tell
                whether less or more is better.

        Example:
            `trained = runs.model(runs.best("val_accuracy"))`
        """
        metric = self._metric(metric)
        scores = self.final(metric) * (1 if mode_of(metric, mode) == "min" else -1)
        if np.isnan(scores).all() and (self.diverged_at < 0).any():
            raise ValueError(
                f"There is no best member: {metric!r} is NaN for all that did not diverge. Look for NaN in the data, "
                "or go by another metric."
            )
        if np.isnan(scores).all():
            raise ValueError(
                f"There is no best member: all {len(self.members)} diverged. Lower the learning rates; the smallest "
                f"was {min(m.lr for m in self.members):.3g}."
            )
        return int(np.nanargmin(scores))

    def basin(
        self,
        metric: str | None = None,
        mode: Mode | None = None,
        *,
        tolerance: float = TOLERANCE,
        position: float | None = None,
    ) -> Basin:
        """Return the learning rates that are nearly as good as the best, by their final values, the mean over seeds.

        How far one is behind is told as a share of what the best gains: of a loss, over the first training loss, that
        of untrained weights; of another metric, over the worst member.

        Args:
            metric: as in `final`.
            mode: as in `best`.
            tolerance: the share that is good enough.
            position: where in the basin `lr` is to lie, in log lr: 0 for its lower end, 1 for its upper; None for its
                steadiest point, the centre, in which each counts the less the further it is behind.

        Raises:
            ValueError: the members differ in more than lr and seed, all diverged, or an argument is out of range.

        Example:
            `runs.select(schedule="cosine").basin("val_loss").lr`
        """
        if not is_number(tolerance) or not 0 < tolerance < 1:
            raise ValueError(f"`tolerance` must be a share between 0 and 1; got {tolerance!r}. Pass {TOLERANCE}.")
        if position is not None and not (is_number(position) and 0 <= position <= 1):
            raise ValueError(f"`position` must be from 0, the lower end, to 1; got {position!r}.")
        lrs, gaps = self.gaps(metric, mode)
        found = read_basin(lrs, gaps, int(np.argmin(gaps)), tolerance)
        return found if position is None else found.at(position)

    def gaps(self, metric: str | None = None, mode: Mode | None = None) -> tuple[FloatArray, FloatArray]:
        """Return the learning rates, ascending, and how far each is behind the best, as in `basin`: `[lr]` both.

        Args:
            metric: as in `final`.
            mode: as in `best`.

        Returns:
            The learning rates; and 0 for the best, 1 for as bad as untrained, infinite where a seed diverged.

        Raises:
            ValueError: as in `basin`.
        """
        metric = self._metric(metric)
        sign = 1 if mode_of(metric, mode) == "min" else -1
        combinations = {(member.schedule, *member.hyper.items()) for member in self.members}
        if len(combinations) > 1:
            raise ValueError(
                f"A basin is one of learning rates; these members have {len(combinations)} combinations of schedule "
                'and hyperparameters, too. Take one of them, with `runs.select(schedule="cosine")`, say.'
            )
        final, of_lrs = sign * self.final(metric), dict(sorted(self._by_lr().items()))
        lrs, scores = np.array(list(of_lrs)), np.array([final[members].mean() for members in of_lrs.values()])
        if np.isnan(scores).all():
            raise ValueError("There is no basin: a seed of each learning rate diverged. Lower the learning rates.")
        best = float(np.nanmin(scores))
        start = float(self.train_loss[0].mean()) if metric.endswith("loss") else float(np.nanmax(scores))
        gain = start - best if start > best else 1.0
        return lrs, np.nan_to_num((scores - best) / gain, nan=np.inf)

    def select(self, **values: Any) -> Self:
        """Return the curves of some members only.

        Args:
            **values: `lr`, `schedule`, `seed`, or a hyperparameter that was varied, each one value or a list of them;
                or `member`, their positions in `members`.

        Raises:
            ValueError: no member has these values; the message says which there are.

        Example:
            `runs.select(lr=0.01, schedule=["constant", "one-cycle"])`
        """
        keep = list(range(len(self.members)))
        rows = [{"member": i, **member.as_row()} for i, member in enumerate(self.members)]
        for name, wanted in values.items():
            if name not in rows[0] or name.endswith("_at"):
                known = [key for key in rows[0] if not key.endswith("_at")]
                raise ValueError(f"Members differ in {', '.join(known)}; got {name!r}.")
            wanted = wanted.tolist() if isinstance(wanted, np.ndarray | np.generic | Tensor) else wanted
            listed = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
            found = [i for i in keep if any(_is_equal(rows[i][name], value) for value in listed)]
            if not found:
                there = ", ".join(dict.fromkeys(_text(rows[i][name]) for i in keep))
                raise ValueError(
                    f"`{name}` must be one that members have; got {', '.join(map(_text, listed)) or 'none'}. There is "
                    f"{there}."
                )
            keep = found
        return self._take(keep)

    def bands(self, metric: str | None = None) -> list[Band]:
        """Return a curve for each setting: mean, median, lowest and highest over its seeds.

        A seed that was stopped counts on with its last value. Where one diverged there is no mean, and the lowest and
        the highest are those of the seeds that remain.

        Args:
            metric: the name of any curve; None as in `final`.
        """
        metric = self._metric(metric)
        steps, values = self.curve(metric)
        bands = []
        for setting, members in group_by_setting([member.setting for member in self.members]).items():
            own = values[:, list(members)].copy()
            for column, i in enumerate(members):
                at = self.members[i].stopped_at
                if at is not None:  # a metric was last measured then; a step was not taken any more
                    has_stopped = steps > at if metric in self.metrics else steps >= at
                    own[has_stopped, column] = own[~has_stopped, column][-1]
            low, high = np.fmin.reduce(own, axis=1), np.fmax.reduce(own, axis=1)
            bands.append(Band(setting, members, steps, own.mean(axis=1), np.median(own, axis=1), low, high))
        return bands

    def ranking(self, metric: str | None = None, mode: Mode | None = None, *, confidence: float = 0.95) -> Ranking:
        """Order the settings by their mean over seeds, and say which are no worse than the best beyond chance.

        Settings are compared seed by seed: members of a seed share initial weights, batches and dropout masks. In
        cross-validation they are compared fold by fold.

        Args:
            metric: as in `final`.
            mode: as in `best`.
            confidence: of the intervals of the differences, between 0 and 1.

        Raises:
            ValueError: an argument is out of range.

        Example:
            `print(runs.ranking("val_loss"))`
        """
        metric = self._metric(metric)
        if not is_number(confidence) or not 0 < confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1; got {confidence!r}. Pass 0.95, say.")
        settings, seeds = [m.setting for m in self.members], [m.seed for m in self.members]
        has_diverged = [m.diverged_at is not None for m in self.members]
        final, mode = self.final(metric), mode_of(metric, mode)
        return rank(settings, seeds, final, has_diverged, metric, mode, confidence, self.repeat)

    def records(self) -> list[dict[str, Any]]:
        """Return the curves in long format: a row for each member, step and metric, up to where the member ended.

        Columns: member, lr (the base learning rate), schedule, a column for each hyperparameter that was varied, seed,
        step, epoch (None if unknown), metric ("train_loss", "lr" for the rate of that step, a name of `hyper`,
        `norms` or `metrics`; a metric's step is the number of updates before it), value, and diverged (whether it
        had diverged).

        Example:
            `pandas.DataFrame(runs.records())`
        """
        names = column_names(self)
        return [dict(zip(names, row, strict=True)) for row in rows_of(self)]

    def _counted(self, number: int, name: str) -> str:
        """A number of values of what members may differ in; names of hyperparameters have no plural."""
        if name == "seed":
            return counted(number, self.repeat)
        return counted(number, name) if name in ("lr", "schedule") else f"{number} of {name}"

    def _metric(self, metric: str | None) -> str:
        return metric if metric is not None else "val_loss" if "val_loss" in self.metrics else "train_loss"

    def _by_lr(self) -> dict[float, list[int]]:
        """The members of each learning rate, in the order in which those first come."""
        members = dict[float, list[int]]()
        for i, member in enumerate(self.members):
            members.setdefault(member.lr, []).append(i)
        return members

    def _take(self, members: Sequence[int]) -> Self:
        """The same with some members only."""
        columns = list(members)
        return replace(
            self,
            members=tuple(self.members[i] for i in members),
            lr=self.lr[:, columns],
            train_loss=self.train_loss[:, columns],
            metrics={name: values[:, columns] for name, values in self.metrics.items()},
            hyper={name: values[:, columns] for name, values in self.hyper.items()},
            norms={name: values[:, columns] for name, values in self.norms.items()},
        )


def _is_equal(own: Any, wanted: Any) -> bool:
    if isinstance(own, float) and isinstance(wanted, int | float):
        return math.isclose(own, wanted, rel_tol=1e-9)
    return bool(own == wanted)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
