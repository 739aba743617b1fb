"""Sweep: what a sweep trained, as matrices [step, member]; what it says, and how it goes on. Frozen.

Losses are stored as they were, before each update and without smoothing.

Not here: range tests, which are sweeps read as one curve (`range_test.py`), and how members train further
(`training.py`).
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from torch import nn

from vecsweep._errors import ResultFileError
from vecsweep._types import FloatArray, Hyper, IntArray, Lrs, Mode, Schedules
from vecsweep.results._checks import check_content
from vecsweep.results._files import read_result, replace_file, write_csv, write_result
from vecsweep.results.ranking import Band, Ranking, Setting, group_by_setting, mode_of, rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PlotKind = Literal["curves", "final", "plan", "heatmap"]


class MemberRecord(NamedTuple):
    """One row of the table of members.

    Attributes:
        lr: its base learning rate; a ramp's is the rate it ends at.
        schedule: the name of what its learning rate follows.
        seed: of its initial weights, batches and random numbers.
        diverged_at: the step at which it diverged; None if it did not.
        stopped_at: the updates it had taken when its metric no longer improved; None if it went on.
        hyper: what else it has of its own, by name.
    """

    lr: float
    schedule: str
    seed: int
    diverged_at: int | None
    stopped_at: int | None = None
    hyper: dict[str, float] = {}  # noqa: RUF012 - never written to

    @property
    def setting(self) -> Setting:
        """All that it has besides its seed."""
        return Setting(self.lr, self.schedule, tuple(self.hyper.items()))

    def as_row(self) -> dict[str, Any]:
        """The record as a flat dict, with a column for each hyperparameter."""
        return {
            "lr": self.lr,
            "schedule": self.schedule,
            **self.hyper,
            "seed": self.seed,
            "diverged_at": self.diverged_at,
            "stopped_at": self.stopped_at,
        }


class Trained(Protocol):
    """What a sweep leaves besides its curves: the weights, and all that it takes to go on. See `training.py`."""

    def model(self, i: int) -> nn.Module:
        """Make a module of member i's weights."""

    def select(self, members: Sequence[int]) -> "Trained":
        """Take some members."""

    def extend(self, runs: "Sweep", num_steps: int | None, epochs: int | None) -> "Sweep":
        """Train all members further."""

    def branch(
        self,
        runs: "Sweep",
        i: int,
        lrs: Lrs | None,
        schedules: Schedules | None,
        vary: Mapping[str, Sequence[float]] | None,
        num_steps: int | None,
        epochs: int | None,
    ) -> "Sweep":
        """Train copies of member i further."""


_NO_WEIGHTS = (
    "The weights of the members are not here: neither a range test nor an interrupted sweep keeps them, and a file "
    "does not hold them. Call this on what a complete `vecsweep.sweep` returns."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # arrays are neither equal nor short
class Sweep:
    """What a sweep trained.

    Attributes:
        members: one record each.
        lr: `[step, member]`, the learning rate that each update used.
        train_loss: `[step, member]`, before each update; NaN after a member diverged or stopped.
        metrics: by name, such as "val_loss", each `[evaluation, member]`; NaN likewise.
        evaluated_at: `[evaluation]`, the updates that had been taken before each.
        hyper: other hyperparameters that members have for themselves, by name, each `[step, member]`.
        phases: the steps at which training was taken up, the first of them 0.
        steps_per_epoch: updates in one pass over the batches; None if nobody counted.
        engine: how the members were stepped, in words.
        duration_s: how long the run took, in seconds.
        is_complete: False when Ctrl-C stopped the run early.
    """

    members: tuple[MemberRecord, ...]
    lr: FloatArray
    train_loss: FloatArray
    metrics: dict[str, FloatArray] = field(default_factory=dict)
    evaluated_at: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    hyper: Hyper = field(default_factory=dict)
    phases: tuple[int, ...] = (0,)
    steps_per_epoch: float | None
    engine: str
    duration_s: float
    is_complete: bool = True
    _trained: Trained | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        rows = [member.as_row() for member in self.members]
        names = [name for name in rows[0] if not name.endswith("_at")]
        counts = [_counted(len({row[name] for row in rows}), name) for name in names]
        length = "" if self.is_complete else ", interrupted"
        what = f"{_counted(len(rows), 'member')}: {', '.join(counts)}; {len(self.train_loss)} steps{length}"
        return f"{type(self).__name__}({what}; {', '.join(('train_loss', *self.metrics))})"

    @property
    def diverged_at(self) -> IntArray:
        """The step at which each member diverged, `[member]`; -1 if it did not."""
        return np.array([-1 if m.diverged_at is None else m.diverged_at for m in self.members])

    @property
    def stopped_at(self) -> IntArray:
        """The updates after which each member was stopped, `[member]`; -1 if it went on."""
        return np.array([-1 if m.stopped_at is None else m.stopped_at for m in self.members])

    # --- reading the curves -------------------------------------------------------------------------------------------

    def curve(self, name: str) -> tuple[IntArray, FloatArray]:
        """Return a curve of every member, and the updates that had been taken before each of its values.

        Args:
            name: "train_loss", "lr", one of `hyper`, or one of `metrics`.

        Returns:
            `[step]` and `[step, member]`; of a metric, `[evaluation]` and `[evaluation, member]`.

        Raises:
            ValueError: there is no such curve.
        """
        steps = np.arange(len(self.train_loss))
        if name in self.metrics:
            return self.evaluated_at, self.metrics[name]
        by_step = {"train_loss": self.train_loss, "lr": self.lr, **self.hyper}
        if name not in by_step:
            known = [*self.metrics, *by_step]
            close = difflib.get_close_matches(name, known, n=1)
            did_you_mean = f" Did you mean {close[0]!r}?" if close else ""
            hint = "" if self.metrics else " Validation needs `val_batches` in the task."
            raise ValueError(f"`metric` must be one of {', '.join(known)}; got {name!r}.{did_you_mean}{hint}")
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
        for i, member in enumerate(self.members):
            own = values[~np.isnan(values[:, i]), i]
            if member.diverged_at is None and own.size:
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

    def select(self, **values: Any) -> "Sweep":
        """Return the sweep of some members only.

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
            listed = list(wanted) if isinstance(wanted, list | tuple | np.ndarray) else [wanted]
            found = [i for i in keep if any(_is_equal(rows[i][name], value) for value in listed)]
            if not found:
                there = ", ".join(dict.fromkeys(_text(rows[i][name]) for i in keep))
                raise ValueError(
                    f"`{name}` must be one that members have; got {', '.join(map(_text, listed))}. There is {there}."
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

        Settings are compared seed by seed: members of a seed share initial weights, batches and dropout masks.

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
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1; got {confidence!r}. Pass 0.95, say.")
        settings, seeds = [m.setting for m in self.members], [m.seed for m in self.members]
        has_diverged = [m.diverged_at is not None for m in self.members]
        return rank(settings, seeds, self.final(metric), has_diverged, metric, mode_of(metric, mode), confidence)

    def records(self) -> list[dict[str, Any]]:
        """Return the curves in long format: a row for each member, step and metric, up to where the member ended.

        Columns: member, lr (the base learning rate), schedule, a column for each hyperparameter that was varied, seed,
        step, epoch (None if unknown), metric ("train_loss", "lr" for the rate of that step, a name of `hyper` or of
        `metrics`; a metric's step is the number of updates before it), value, and diverged (whether the member had
        diverged).

        Example:
            `pandas.DataFrame(runs.records())`
        """
        rows = []
        for i, member in enumerate(self.members):
            own = {"lr": member.lr, "schedule": member.schedule, **member.hyper, "seed": member.seed}
            end = len(self.train_loss) if member.stopped_at is None else member.stopped_at
            end = end if member.diverged_at is None else member.diverged_at + 1
            for metric in ("train_loss", "lr", *self.hyper, *self.metrics):
                steps, values = self.curve(metric)
                is_measured = metric in self.metrics
                rows += [
                    {
                        "member": i,
                        **own,
                        "step": int(step),
                        "epoch": self._epoch(int(step), is_measured=is_measured),
                        "metric": metric,
                        "value": float(value),
                        "diverged": bool(step == member.diverged_at),
                    }
                    for step, value in zip(steps, values[:, i], strict=True)
                    if (not np.isnan(value) if is_measured else step < end)
                ]
        return rows

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        kind: PlotKind = "curves",
        metric: str | None = None,
        mode: Mode | None = None,
    ) -> "Axes":
        """Draw what was trained.

        Args:
            ax: where to draw; None makes a figure.
            kind: "curves" of all members, with bands over seeds; "final", the final metric against lr, a line for each
                schedule; "plan", the hyperparameters against the step; "heatmap", the final metric where two things
                vary.
            metric: as in `final`; for "curves" and "plan" the name of any curve.
            mode: as in `best`, for "final" and "heatmap".

        Returns:
            The axes; `runs.plot().figure.savefig("runs.png")` keeps the picture.

        Raises:
            ValueError: there is no such kind or metric.
        """
        from vecsweep import plot

        return plot.plot_sweep(self, ax, kind=kind, metric=metric, mode=mode)

    # --- going on -----------------------------------------------------------------------------------------------------

    def model(self, i: int) -> nn.Module:
        """Return a module with member i's trained weights; of a member that diverged or stopped, those at its end.

        Raises:
            IndexError: there is no such member.
            ValueError: the result is of a range test, or was loaded from a file; neither holds weights.
        """
        return self._weights().model(self._index(i))

    def save_model(self, i: int, path: str | os.PathLike[str]) -> Path:
        """Write member i's trained weights to a safetensors file, with its lr, schedule and seed as metadata.

        `safetensors.torch.load_model(model, path)` puts them into a module of the same architecture.

        Args:
            i: the member, such as `runs.best()`.
            path: where; ".safetensors" is added if it has no suffix. A file that is there is replaced at once.

        Raises:
            IndexError: as in `model`.
            ValueError: likewise.
            OSError: the file cannot be written.
        """
        from safetensors.torch import save_model

        model, path = self.model(i), Path(path)
        path = path if path.suffix else path.with_suffix(".safetensors")
        row = self.members[i].as_row() | {"num_steps": len(self.train_loss)}
        metadata = {name: str(value) for name, value in row.items() if value is not None}
        return replace_file(path, lambda place: save_model(model, str(place), metadata))

    def extend(self, *, num_steps: int | None = None, epochs: int | None = None) -> "Sweep":
        """Train all members further; this result stays as it is.

        Weights, optimizer states, batches and random numbers go on where they stood, so that ten epochs and ten more
        are twenty. A schedule that is a function of progress has come to its end and holds its last value; one of
        torch's runs on. Members that diverged or were stopped stay as they are.

        Args:
            num_steps: further updates of each member.
            epochs: further passes over the batches, in place of `num_steps`.

        Returns:
            The whole history, from the first step on.

        Raises:
            ValueError: there is nothing to train further, or an argument is out of range.
            Interrupted: Ctrl-C; its `result` holds what was computed.
        """
        return self._weights().extend(self, num_steps, epochs)

    def branch(
        self,
        i: int,
        *,
        lrs: Lrs | None = None,
        schedules: Schedules | None = None,
        vary: Mapping[str, Sequence[float]] | None = None,
        num_steps: int | None = None,
        epochs: int | None = None,
    ) -> "Sweep":
        """Copy member i, its weights, optimizer state and all, into new members, and train those side by side.

        They go on with the batches that follow the whole run, also after a member that was stopped earlier.

        Args:
            i: the member to go on from, such as `runs.best()`.
            lrs: the learning rates of the new members; None for member i's own.
            schedules: as in `vecsweep.sweep`; each begins where the branch does.
            vary: likewise; what is not named stays as member i had it.
            num_steps: further updates of each.
            epochs: further passes over the batches, in place of `num_steps`.

        Returns:
            A sweep of the new members, with member i's history before theirs.

        Raises:
            IndexError: there is no such member.
            ValueError: member i diverged, or an argument is out of range.
            Interrupted: Ctrl-C; its `result` holds what was computed.

        Example:
            `runs.branch(runs.best("val_loss"), lrs=[0.01, 0.003], epochs=30)`
        """
        return self._weights().branch(self, self._index(i), lrs, schedules, vary, num_steps, epochs)

    def to_tensorboard(self, folder: str | os.PathLike[str]) -> Path:
        """Write a TensorBoard run for each member, named by its lr, schedule and seed, with hparams.

        Args:
            folder: where; made if it is not there. Runs of the same names that are there are written on.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        from vecsweep.observers.tensorboard import write_sweep

        return write_sweep(self, folder)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one .npz file: arrays, and a JSON header. A file that is there is replaced at once.

        Args:
            path: where; ".npz" is added if it has no suffix.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written, for want of its folder for example.
        """
        header: dict[str, Any] = {"kind": type(self).__name__}
        header |= {name: getattr(self, name) for name in self._header_names()}
        header["members"] = [[*member[:-1], dict(member.hyper)] for member in self.members]
        arrays = {"lr": self.lr, "train_loss": self.train_loss, "evaluated_at": self.evaluated_at}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        arrays |= {f"hyper/{name}": values for name, values in self.hyper.items()}
        return write_result(path, header, arrays)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `records()` to a CSV file.

        Args:
            path: where. A file that is there is replaced at once.

        Raises:
            OSError: the file cannot be written.
        """
        return write_csv(path, self.records())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote; nothing in the file is run.

        Args:
            path: where; ".npz" is added if it has no suffix and there is no such file.

        Raises:
            FileNotFoundError: there is no such file.
            ResultFileError: the file is damaged, foreign, pickled, of a later version, or of another kind.
        """
        header, arrays = read_result(path)
        if header["kind"] != cls.__name__:
            raise ResultFileError(f"{path} holds a {header['kind']}, not a {cls.__name__}. Load it with that class.")
        try:
            check_content(header, arrays)
            own = {name: header[name] for name in cls._header_names()}
            own["phases"] = tuple(own["phases"])
            return cls(
                members=tuple(MemberRecord(*member) for member in header["members"]),
                lr=arrays["lr"],
                train_loss=arrays["train_loss"],
                evaluated_at=arrays["evaluated_at"],
                metrics=_under("metrics/", arrays),
                hyper=_under("hyper/", arrays),
                **own,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Run the sweep again.") from error

    # --- inside -------------------------------------------------------------------------------------------------------

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return ("phases", "steps_per_epoch", "engine", "duration_s", "is_complete")

    def _metric(self, metric: str | None) -> str:
        return metric if metric is not None else "val_loss" if "val_loss" in self.metrics else "train_loss"

    def _epoch(self, step: int, *, is_measured: bool) -> int | None:
        """The epoch that a step is in; of a measurement, the one that it comes at the end of."""
        if self.steps_per_epoch is None:
            return None
        return int(max(0, step - is_measured) // self.steps_per_epoch)

    def _index(self, i: int) -> int:
        if not -len(self.members) <= i < len(self.members):
            raise IndexError(f"`i` must be one of the {len(self.members)} members; got {i}.")
        return i % len(self.members)

    def _weights(self) -> Trained:
        if self._trained is None:
            raise ValueError(_NO_WEIGHTS)
        return self._trained

    def _take(self, members: Sequence[int]) -> Self:
        """The same sweep with some members only."""
        columns = list(members)
        return replace(
            self,
            members=tuple(self.members[i] for i in members),
            lr=self.lr[:, columns],
            train_loss=self.train_loss[:, columns],
            metrics={name: values[:, columns] for name, values in self.metrics.items()},
            hyper={name: values[:, columns] for name, values in self.hyper.items()},
            _trained=None if self._trained is None else self._trained.select(members),
        )


def _under(prefix: str, arrays: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The arrays whose names begin so, without that."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _counted(number: int, name: str) -> str:
    if name not in ("lr", "schedule", "seed", "member"):
        return f"{number} of {name}"
    return f"{number} {name}{'' if number == 1 else 's'}"


def _is_equal(own: Any, wanted: Any) -> bool:
    if isinstance(own, float) and isinstance(wanted, int | float):
        return bool(np.isclose(own, wanted, rtol=1e-9, atol=0))
    return bool(own == wanted)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
