"""What members came to: the final metric against the learning rate, or side by side at a single one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from vecsweep._types import FloatArray, Mode
from vecsweep._words import counted
from vecsweep.plot._axes import (
    EDGE,
    add_grid,
    add_legend,
    at_height,
    axes_for,
    draw_crosses,
    label_lrs,
    limit_values,
    neutral_color,
    say_instead,
)
from vecsweep.plot._looks import Look, Looks, choose_looks, make_band_entry, make_entry
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Ranking, Repeat, Setting, Standing
from vecsweep.results.views import (
    describe_counts,
    describe_value,
    find_usual,
    find_varying,
    find_view,
    name_metric,
    value_of,
)

_FAR = 10  # times the height of the view, beyond which a final value is left out of it
_STACK = 0.035  # between crosses at one place, as a fraction of the axes


class _Point(NamedTuple):
    """A setting at its place on the x axis; what it came to, over the seeds that did not diverge."""

    x: float
    standing: Standing
    values: FloatArray  # [seed]

    @property
    def low(self) -> float:
        return float(self.values.min(initial=np.inf)) if self.values.size else float("nan")

    @property
    def high(self) -> float:
        return float(self.values.max(initial=-np.inf)) if self.values.size else float("nan")


def plot_final(runs: Curves, ax: Axes | None = None, *, metric: str | None = None, mode: Mode | None = None) -> Axes:
    """Draw the final value of a metric against the learning rate, a line for each schedule and hyperparameter.

    The line is the mean over seeds, and the band reaches from the lowest to the highest. Where a seed diverged the
    line has a gap, the band is that of the seeds that remain, and a cross stands at the edge. The best setting is
    marked, and so are those that are no worse than it beyond chance; see `Sweep.ranking`. At a single learning rate
    the settings stand side by side, with a point for each seed.

    Args:
        runs: the sweep.
        ax: where to draw; None makes a figure of its own.
        metric: as in `Sweep.final`.
        mode: as in `Sweep.best`.

    Raises:
        ValueError: there is no such metric, or its name does not tell whether less or more is better.
    """
    metric = name_metric(runs, metric)
    ranking = runs.ranking(metric, mode)
    final = runs.final(metric)
    ax = axes_for(ax)
    mean = "mean " if max(len(standing.members) for standing in ranking.standings) > 1 else ""
    tail = ", mean of the last tenth of steps" if metric == "train_loss" else ""
    ax.set(ylabel=f"{mean}final {metric}{tail}", title=describe_counts(runs))
    add_grid(ax)
    settings = list(dict.fromkeys(member.setting for member in runs.members))
    lrs = sorted({setting.lr for setting in settings})
    if len(lrs) > 1:
        label_lrs(ax, lrs)
        positions = {setting: setting.lr for setting in settings}
    else:
        _label_settings(ax, settings)
        positions = {setting: float(i) for i, setting in enumerate(settings)}
    points = [
        _Point(positions[s.setting], s, final[list(s.members)][~np.isnan(final[list(s.members)])])
        for s in sorted(ranking.standings, key=lambda s: (positions[s.setting], s.members))
    ]
    if not np.isfinite(final).any():
        all_diverged = f"All {counted(len(runs.members), 'member')} diverged,\nfrom lr {lrs[0]:.3g} up."
        say_instead(ax, all_diverged if (runs.diverged_at >= 0).all() else f"No final {metric} is finite.")
        return ax
    bottom, top = find_view(final, find_usual(runs, metric, final), ranking.mode)
    lowest, highest = float(np.nanmin(final)), float(np.nanmax(final))
    if highest - lowest <= _FAR * (top - bottom):
        bottom, top = lowest, highest
    limit_values(ax, bottom, top)
    if len(lrs) > 1:
        looks = choose_looks(settings, ax, without=("lr",))
        legend = [*looks.entries, *_draw_lines(ax, points, looks, runs.repeat)]
        looks.add_color_bar(ax)
    else:
        looks = Looks(dict.fromkeys(settings, choose_looks(settings[:1], ax).by_setting[settings[0]]), ())
        legend = _draw_side_by_side(ax, points, looks, runs.repeat)
    legend += _mark_best(ax, points, ranking)
    legend += _draw_diverged(ax, points, looks, ranking)
    add_legend(ax, legend, is_inside=looks.scale is not None)
    return ax


def _label_settings(ax: Axes, settings: Sequence[Setting]) -> None:
    varying = find_varying(settings)
    names = [", ".join(describe_value(name, value_of(setting, name)) for name in varying) for setting in settings]
    is_long = sum(map(len, names)) > 60
    look: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    ax.set_xticks(range(len(settings)), names if varying else [str(settings[0])], **look)
    ax.set_xlim(-0.6, len(settings) - 0.4)


def _draw_lines(ax: Axes, points: Sequence[_Point], looks: Looks, repeat: Repeat) -> list[Artist]:
    """Draw a line and a band for each combination of what varies besides the lr."""
    rows: dict[tuple[str, Any], list[_Point]] = {}
    for point in points:
        rows.setdefault((point.standing.setting.schedule, point.standing.setting.hyper), []).append(point)
    for row in rows.values():
        look = looks.by_setting[row[0].standing.setting]
        x = [point.x for point in row]
        ax.plot(
            x,
            [point.standing.mean for point in row],
            color=look.color,
            linestyle=look.line,
            linewidth=1.8,
            marker=".",  # a point between gaps is no line
            markersize=7 if len(x) <= 30 else 3,
        )
        if max(len(point.standing.members) for point in row) > 1:
            low, high = [point.low for point in row], [point.high for point in row]
            ax.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0, zorder=1)
    num_seeds = max(len(point.standing.members) for point in points)
    if num_seeds == 1:
        return []
    return [make_band_entry(f"lowest to highest\nof {counted(num_seeds, repeat)}", neutral_color(ax))]


def _draw_side_by_side(ax: Axes, points: Sequence[_Point], looks: Looks, repeat: Repeat) -> list[Artist]:
    """Draw each seed as a point, and the mean as a bar."""
    num_seeds = max(len(point.standing.members) for point in points)
    color = looks.by_setting[points[0].standing.setting].color
    for point in points:
        x = np.full(len(point.values), point.x)
        if num_seeds > 1:
            x = x + np.linspace(-0.12, 0.12, num_seeds)[: len(x)]
            ax.plot([point.x - 0.25, point.x + 0.25], [point.standing.mean] * 2, color=color, linewidth=2.2)
        ax.plot(x, point.values, linestyle="none", marker="o", markersize=5, color=color, alpha=0.6, markeredgewidth=0)
    if num_seeds == 1:
        return []
    return [
        make_entry(f"mean of {counted(num_seeds, repeat)}", color, "-", linewidth=2.2),
        make_entry(f"each {repeat}", color, marker="o", markersize=5, alpha=0.6, markeredgewidth=0),
    ]


def _mark_best(ax: Axes, points: Sequence[_Point], ranking: Ranking) -> list[Artist]:
    """Ring the best setting, and more lightly those that are tied with it."""
    best = ranking.best
    if np.isnan(best.mean):
        return []
    ring: dict[str, Any] = {"markerfacecolor": "none", "marker": "o", "color": neutral_color(ax)}
    tied = [point for point in points if point.standing.is_tied and point.standing is not best]
    entries: list[Artist] = []
    (position,) = [point.x for point in points if point.standing is best]
    varying = find_varying([point.standing.setting for point in points])
    what = ", ".join(describe_value(name, value_of(best.setting, name)) for name in varying) or "the only one"
    label = f"best: {best.mean:.4g},\n{what}"
    look = ring | {"markersize": 12, "markeredgewidth": 2.2}
    ax.plot([position], [best.mean], linestyle="none", zorder=4, label=label, **look)
    entries.append(make_entry(label, **look))
    if tied:
        label = f"no worse beyond chance\n({ranking.confidence:.0%}): {len(tied)}"
        look = ring | {"markersize": 10, "markeredgewidth": 0.8}
        means = [point.standing.mean for point in tied]
        ax.plot([point.x for point in tied], means, linestyle="none", zorder=4, label=label, **look)
        entries.append(make_entry(label, **look))
    return entries


def _draw_diverged(ax: Axes, points: Sequence[_Point], looks: Looks, ranking: Ranking) -> list[Artist]:
    """Put a cross at the worse edge for each setting of which a seed diverged; those at one place are stacked."""
    left = [point for point in points if point.standing.num_diverged]
    if not left:
        return []
    stacked: dict[float, int] = {}
    for point in left:
        depth = stacked.setdefault(point.x, 0)
        stacked[point.x] += 1
        height = EDGE - depth * _STACK
        look: Look = looks.by_setting[point.standing.setting]
        draw_crosses(ax, [point.x], [at_height(ax, height if ranking.mode == "min" else 1 - height)], color=look.color)
    has_seeds = max(len(point.standing.members) for point in points) > 1
    who = f"a {ranking.repeat} " if has_seeds else ""
    label = f"{who}diverged: {len(left)} of\n{counted(len(points), 'setting')}"
    return [make_entry(label, neutral_color(ax), marker="x", markersize=6, markeredgewidth=1.5)]
