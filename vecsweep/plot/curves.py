"""Curves against the step: a line for each setting, a band over its seeds, and where members ended."""

from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from vecsweep._types import FloatArray, IntArray, Mode
from vecsweep._words import counted
from vecsweep.plot._axes import (
    EDGE,
    add_legend,
    at_height,
    axes_for,
    describe_steps,
    draw_crosses,
    limit_values,
    neutral_color,
    say_instead,
)
from vecsweep.plot._looks import Looks, choose_looks, make_band_entry, make_entry
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Band, Repeat
from vecsweep.results.views import describe_counts, find_mode, find_usual, find_view, name_metric
from vecsweep.suggest import smooth

_FEW_MEMBERS = 6  # whose losses are drawn unsmoothed, too
_FEW_POINTS = 30  # of a curve, up to which each is marked
_WINDOW = 50  # part of the run that one value of a smoothed curve is an average over


def plot_curves(runs: Curves, ax: Axes | None = None, *, metric: str | None = None, mode: Mode | None = None) -> Axes:
    """Draw a curve of every setting against the step, or against the epoch where there are two or more.

    A line is the mean over the seeds of a setting, and a band reaches from the lowest of them to the highest; where a
    seed ended, both go on with the seeds that remain. Learning rates are told by colour, schedules and what else was
    varied by the line style; at a single learning rate, schedules by colour. The training loss is smoothed by a
    moving average over about a fiftieth of the run, as the axis says; of few members it is drawn thinly as it is, too.

    A cross marks where a member diverged, at the last value it had, or at the edge if that is out of view; a square
    where one was stopped early; and a vertical line where training was taken up again. The value axis ends as in
    `plot_range_test`, so that what explodes does not squash the rest; it is logarithmic if the highest value in view
    is more than 30 times the lowest.

    Args:
        runs: the sweep.
        ax: where to draw; None makes a figure of its own.
        metric: the name of any curve; None for "val_loss" if there is one, else "train_loss".
        mode: whether less or more of it is better; None to go by its name. Only the limits depend on it.

    Raises:
        ValueError: there is no such curve.
    """
    metric = name_metric(runs, metric)
    mode = find_mode(metric, mode)
    steps, values = runs.curve(metric)
    ax = axes_for(ax)
    ax.set(ylabel=metric, title=describe_counts(runs))
    unit = describe_steps(ax, len(runs.train_loss), runs.steps_per_epoch)
    if not np.isfinite(values).any():
        say_instead(ax, f"There is no {metric}:\n{_explain_none(runs)}.")
        return ax
    smoothing = _choose_smoothing(len(runs.train_loss)) if metric == "train_loss" else 0.0
    smoothed = replace(runs, train_loss=smooth(runs.train_loss, smoothing)) if metric == "train_loss" else runs
    bands = smoothed.bands(metric)
    looks = choose_looks([band.setting for band in bands], ax)
    ax.set_ylabel(_describe_values(bands, metric, smoothing))
    legend = [*looks.entries, *_draw_bands(ax, bands, looks, unit, runs.repeat)]
    if smoothing and len(runs.members) <= _FEW_MEMBERS:
        legend += _draw_thinly(ax, bands, looks, values, steps / unit)
    drawn = np.stack([(band.mean, band.low, band.high) for band in bands])
    limit_values(ax, *find_view(drawn, find_usual(runs, metric, drawn), mode))
    _, ends = smoothed.curve(metric)
    legend += _draw_ends(ax, runs, looks, _last_values(ends), unit, mode)
    legend += _draw_phases(ax, runs, unit)
    looks.add_color_bar(ax)
    add_legend(ax, legend, is_inside=looks.scale is not None)
    return ax


def _choose_smoothing(num_steps: int) -> float:
    return 1 - 1 / max(1.0, num_steps / _WINDOW)


def _explain_none(runs: Curves) -> str:
    if (runs.diverged_at >= 0).all():
        lowest = min(member.lr for member in runs.members)
        return f"all {counted(len(runs.members), 'member')} diverged,\nfrom lr {lowest:.3g} up"
    return "nothing was measured"


def _describe_values(bands: list[Band], metric: str, smoothing: float) -> str:
    mean = "mean " if max(len(band.members) for band in bands) > 1 else ""
    return f"{mean}{metric}" + (f", smoothed ({smoothing:.2g})" if smoothing else "")


def _draw_bands(ax: Axes, bands: list[Band], looks: Looks, unit: float, repeat: Repeat) -> list[Artist]:
    """Draw lines and bands; the curves of a range test have steps enough without marks."""
    num_seeds = max(len(band.members) for band in bands)
    is_crowded = len(bands) > 6
    for band in bands:
        look, steps = looks.by_setting[band.setting], band.steps / unit
        ax.plot(
            steps,
            band.mean,
            color=look.color,
            linestyle=look.line,
            linewidth=1.3 if is_crowded else 1.8,
            marker="." if len(steps) <= _FEW_POINTS else "",
            markersize=4,
            label=str(band.setting),
        )
        if len(band.members) > 1:
            alpha = 0.1 if is_crowded else 0.18
            ax.fill_between(steps, band.low, band.high, color=look.color, alpha=alpha, linewidth=0, zorder=1)
    if num_seeds == 1:
        return []
    return [make_band_entry(f"lowest to highest\nof {counted(num_seeds, repeat)}", neutral_color(ax))]


def _draw_thinly(
    ax: Axes,
    bands: list[Band],
    looks: Looks,
    values: FloatArray,  # [step, member]
    x: FloatArray,  # [step]
) -> list[Artist]:
    for band in bands:
        color = looks.by_setting[band.setting].color
        for i in band.members:
            ax.plot(
                x, np.where(np.isfinite(values[:, i]), values[:, i], np.nan), color=color, linewidth=0.6, alpha=0.35
            )
    return [make_entry("not smoothed", neutral_color(ax), "-", linewidth=0.6, alpha=0.6)]


def _last_values(
    values: FloatArray,  # [step, member]
) -> FloatArray:
    """The last finite value of each member, `[member]`; NaN if it has none."""
    finite = [own[np.isfinite(own)] for own in values.T]
    return np.array([own[-1] if own.size else np.nan for own in finite])


def _draw_ends(
    ax: Axes,
    runs: Curves,
    looks: Looks,
    last: FloatArray,  # [member]
    unit: float,
    mode: Mode | None,
) -> list[Artist]:
    """Mark the members that diverged or were stopped, at the end of their curves."""
    low, high = at_height(ax, 1 - EDGE), at_height(ax, EDGE)
    heights = np.clip(np.where(np.isnan(last), low if mode == "max" else high, last), low, high)
    neutral, members = neutral_color(ax), counted(len(runs.members), "member")
    entries: list[Artist] = []
    diverged, stopped = _where(runs.diverged_at), _where(runs.stopped_at)
    for i in diverged:
        color = looks.by_setting[runs.members[i].setting].color
        draw_crosses(ax, [runs.diverged_at[i] / unit], [heights[i]], color=color)
    for i in stopped:
        color = looks.by_setting[runs.members[i].setting].color
        ax.plot([runs.stopped_at[i] / unit], [heights[i]], marker="s", markersize=5, color=color, zorder=5)
    if diverged.size:
        label = f"diverged: {diverged.size} of\n{members}"
        entries.append(make_entry(label, neutral, marker="x", markersize=6, markeredgewidth=1.5))
    if stopped.size:
        entries.append(make_entry(f"stopped early: {stopped.size} of\n{members}", neutral, marker="s", markersize=5))
    return entries


def _where(
    ended_at: IntArray,  # [member], -1 where it went on
) -> IntArray:
    return np.flatnonzero(ended_at >= 0)


def _draw_phases(ax: Axes, runs: Curves, unit: float) -> list[Artist]:
    look = {"color": neutral_color(ax), "linewidth": 0.8, "alpha": 0.6}
    for phase in runs.phases[1:]:
        ax.axvline(phase / unit, linestyle=(0, (4, 3)), zorder=0.5, **look)
    if len(runs.phases) == 1:
        return []
    return [make_entry("taken up again", line=(0, (4, 3)), **look)]
