"""Hyperparameters against the step, and a schedule against progress."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vecsweep._types import FloatArray
from vecsweep.plot._axes import add_grid, add_legend, axes_for, describe_steps, limit_values, neutral_color
from vecsweep.plot._looks import BLUE, VERMILION, Look, Looks, choose_looks, make_entry
from vecsweep.results.curves import Curves
from vecsweep.results.member import MemberRecord
from vecsweep.results.ranking import Band, Setting
from vecsweep.results.views import LOG_RATIO, describe_counts

_BELOW = 100  # how many times below the lowest peak of a line a logarithmic axis ends at the latest
_NUM_POINTS = 1001  # at which a schedule is drawn
_LABELS = {"lr": "learning rate"}


class Planned(Protocol):
    """What is read of a plan: a `vecsweep.plan.Plan`, or what looks like one."""

    @property
    def members(self) -> Iterable[Any]:
        """Who has `lr`, `schedule`, `seed` and `hyper`."""

    @property
    def hyper(self) -> Mapping[str, FloatArray]:
        """Hyperparameters by name, "lr" among them, each `[step, member]`."""


class Drawable(Protocol):
    """What is read of a schedule."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def momentum(self) -> Callable[[FloatArray], FloatArray] | None:
        """Momentum against progress; None if it has none."""

    def __call__(self, progress: FloatArray) -> FloatArray:
        """Return multiples of the learning rate."""


def plot_plan(runs: Curves | Planned, ax: Axes | None = None, *, name: str = "lr") -> Axes:
    """Draw the learning rate of every setting against the step, or the epoch, and what else changes over the run.

    What changes besides, such as the momentum of a one-cycle schedule, has a panel of its own beneath; if axes are
    given it has a second axis at the right of those, and thin lines. Settings that differ in what has no say here, as
    weight decay has none in the learning rate, share a line. Colours and line styles are as in `plot_curves`. The axis
    is logarithmic if the highest line peaks at more than 30 times the lowest.

    Args:
        runs: a sweep or a plan. In the plan of a schedule that follows a metric, learning rates stay at their first
            value; in a sweep they are those that were used, and a line is the mean over seeds.
        ax: where to draw; None makes a figure of its own.
        name: what is drawn: "lr", or the name of another hyperparameter, which is then alone.

    Returns:
        The axes of the learning rates.

    Raises:
        ValueError: there is no such hyperparameter.
    """
    curves = runs if isinstance(runs, Curves) else _as_curves(runs)
    if name not in (known := ("lr", *curves.hyper)):
        raise ValueError(f"A plan is of hyperparameters, {', '.join(known)}; got {name!r}. Curves are of metrics.")
    bands = _merge(curves.bands(name))
    changing = [key for key, values in curves.hyper.items() if name == "lr" and (values != values[:1]).any()]
    below: Axes | None = None
    if ax is None and changing:
        figure = Figure(figsize=(8, 5), layout="constrained")
        ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    ax = axes_for(ax)
    ax.set(ylabel=_LABELS.get(name, name), title=describe_counts(curves))
    unit = describe_steps(ax, len(curves.lr), curves.steps_per_epoch)
    looks = choose_looks([band.setting for band in bands], ax)
    for band in bands:
        look = looks.by_setting[band.setting]
        ax.plot(band.steps / unit, band.mean, color=look.color, linestyle=look.line, linewidth=1.8)
    _limit(ax, bands)
    legend: list[Artist] = list(looks.entries)
    if below is not None:
        ax.set_xlabel("")
        describe_steps(below, len(curves.lr), curves.steps_per_epoch)
        _draw_changing(below, curves, changing, looks, unit, linewidth=1.8)
        looks.add_color_bar(ax, below)
    else:
        looks.add_color_bar(ax)
        if changing:
            right = ax.twinx()
            _draw_changing(right, curves, changing, looks, unit, linewidth=0.9)
            _put_in_front(ax, right)
            legend.append(make_entry(f"{', '.join(changing)}\n(right)", neutral_color(ax), "-", linewidth=0.9))
    add_legend(ax, legend, is_inside=looks.scale is not None or (changing != [] and below is None))
    return ax


def plot_schedule(schedule: Drawable, ax: Axes | None = None) -> Axes:
    """Draw the multiple of the learning rate against progress; of a schedule with momentum, that too, at the right.

    Args:
        schedule: what is drawn.
        ax: where to draw; None makes a figure of its own.

    Returns:
        The axes of the learning rate.

    Example:
        >>> from vecsweep.plot import plot_schedule
        >>> from vecsweep.schedules import cosine
        >>> plot_schedule(cosine(1, 0)).get_ylabel()
        'multiple of the learning rate'
    """
    ax = axes_for(ax)
    progress = np.linspace(0.0, 1.0, _NUM_POINTS)
    ax.set(xlabel="progress", ylabel="multiple of the learning rate", title=schedule.name, xlim=(0, 1))
    _draw_schedule(ax, progress, schedule(progress), schedule.momentum and schedule.momentum(progress))
    return ax


def plot_rows(rows: Mapping[str, FloatArray], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Draw what a scheduler of torch gives against the step; momentum or beta1, too, at the right.

    Args:
        rows: "lr" and perhaps "momentum" or "beta1", each `[step]`, as `TorchSchedule.rows` returns them.
        ax: where to draw; None makes a figure of its own.
        title: of the picture.

    Returns:
        The axes of the learning rate.
    """
    ax = axes_for(ax)
    ax.set(xlabel="step", ylabel="learning rate", title=title)
    momentum = next((rows[name] for name in ("momentum", "beta1") if name in rows), None)
    _draw_schedule(ax, np.arange(len(rows["lr"]), dtype=np.float64), rows["lr"], momentum)
    return ax


def _draw_schedule(
    ax: Axes,
    places: FloatArray,
    values: FloatArray,
    momentum: FloatArray | None,
) -> None:
    """Draw a line, and momentum against a second axis."""
    ax.plot(places, values, color=BLUE, linewidth=2.0)
    ax.set_ylim(bottom=0)
    add_grid(ax)
    if momentum is not None:
        right = ax.twinx()
        right.plot(places, momentum, color=VERMILION, linestyle="--", linewidth=1.6)
        right.set_ylabel("momentum (dashed)", color=VERMILION)
        right.tick_params(axis="y", labelcolor=VERMILION)
        ax.set_ylabel(ax.get_ylabel(), color=BLUE)
        ax.tick_params(axis="y", labelcolor=BLUE)


def _as_curves(plan: Planned) -> Curves:
    """Curves of which only what was planned is known."""
    return Curves(
        members=tuple(MemberRecord(m.lr, m.schedule, m.seed, None, None, dict(m.hyper)) for m in plan.members),
        lr=plan.hyper["lr"],
        train_loss=np.full(plan.hyper["lr"].shape, np.nan),
        hyper={name: values for name, values in plan.hyper.items() if name != "lr"},
        steps_per_epoch=None,
        engine="planned",
        duration_s=0.0,
    )


def _merge(bands: Sequence[Band]) -> list[Band]:
    """One band for all settings that differ in other hyperparameters alone, provided that their curves are the same."""
    groups: dict[Setting, list[Band]] = {}
    for band in bands:
        groups.setdefault(_without_hyper(band.setting), []).append(band)
    for alike in groups.values():
        if not all(np.array_equal(band.mean, alike[0].mean, equal_nan=True) for band in alike):
            return list(bands)
    return [replace(alike[0], setting=setting) for setting, alike in groups.items()]


def _without_hyper(setting: Setting) -> Setting:
    return replace(setting, hyper=())


def _put_in_front(ax: Axes, twin: Axes) -> None:
    """Keep the lines of the second axis behind the legend of the first."""
    twin.patch.set(visible=ax.patch.get_visible(), facecolor=ax.get_facecolor())
    ax.patch.set_visible(False)
    ax.set_zorder(twin.get_zorder() + 1)


def _limit(ax: Axes, bands: Sequence[Band]) -> None:
    values = np.stack([band.mean for band in bands])
    peaks = np.fmax.reduce(values, axis=1)
    lowest, highest = float(peaks.min()), float(peaks.max())
    if lowest > 0 and highest > LOG_RATIO * lowest:
        limit_values(ax, max(float(values[values > 0].min()), lowest / _BELOW), highest)
    else:
        limit_values(ax, float(np.nanmin(values)), highest, log_ratio=math.inf)


def _draw_changing(
    ax: Axes, curves: Curves, changing: Sequence[str], looks: Looks, unit: float, *, linewidth: float
) -> None:
    """Draw what changes besides the lr; settings with the same curve share a line, neutral if they differ in colour."""
    for name in changing:
        shared: dict[bytes, list[Band]] = {}
        for band in curves.bands(name):
            shared.setdefault(band.mean.tobytes(), []).append(band)
        for bands in shared.values():
            settings = [band.setting for band in bands]
            own = [looks.by_setting.get(s) or looks.by_setting[_without_hyper(s)] for s in settings]
            look = Look(
                own[0].color if all(np.array_equal(one.color, own[0].color) for one in own) else neutral_color(ax),
                own[0].line if all(one.line == own[0].line for one in own) else "-",
            )
            ax.plot(bands[0].steps / unit, bands[0].mean, color=look.color, linestyle=look.line, linewidth=linewidth)
    ax.set_ylabel(", ".join(changing))
