"""The race for a learning rate: the metric against the learning rate, a line for each rung."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vecsweep._types import Mode
from vecsweep.plot._axes import (
    EDGE,
    add_grid,
    add_legend,
    at_height,
    axes_for,
    draw_crosses,
    limit_values,
    neutral_color,
)
from vecsweep.plot._looks import BLUE, VERMILION
from vecsweep.results.trial import Trial
from vecsweep.results.views import RACE_LOG_RATIO, find_view

_FAINTEST = 0.3  # of the first rung's line; the last is opaque


def plot_race(
    trials: Sequence[Trial],
    ax: Axes | None = None,
    *,
    lr: float,
    interval: tuple[float, float],
    start: float,
    metric: str,
    mode: Mode,
    num_steps: int,
    title: str,
) -> Axes:
    """Draw a race, the answer and its interval.

    Args:
        trials: by their learning rate.
        ax: where to draw; None makes a figure.
        lr: the answer.
        interval: of those that are as good.
        start: the metric of untrained weights.
        metric: its name.
        mode: whether less or more of it is better.
        num_steps: of the run.
        title: above the axes.
    """
    ax = axes_for(ax)
    rungs = sorted({rung for trial in trials for rung in trial.rungs})
    values = np.array([score for trial in trials for score in trial.scores])
    entries: list[Line2D | Patch] = []
    for place, rung in enumerate(rungs):
        points = [
            (own.setting.lr, own.scores[own.rungs.index(rung)])
            for own in trials
            if rung in own.rungs and np.isfinite(own.scores[own.rungs.index(rung)])
        ]
        if not points:  # all have diverged
            continue
        alpha = _FAINTEST + (1 - _FAINTEST) * (place + 1) / len(rungs)
        steps = f"after {max(1, round(rung * num_steps))} steps"
        ax.plot(*zip(*points, strict=True), "o-", color=BLUE, alpha=alpha, markersize=4, linewidth=1.5)
        entries.append(Line2D([], [], marker="o", color=BLUE, alpha=alpha, markersize=4, label=steps))
    low, high = interval
    ax.axvspan(low, high, color=VERMILION, alpha=0.15, linewidth=0)
    ax.axvline(lr, color=VERMILION, linewidth=1.5)
    ax.axhline(start, color=neutral_color(ax), linestyle=":", linewidth=1)
    ax.set_xscale("log")
    add_grid(ax)
    limit_values(ax, *find_view(np.append(values, start), start, mode), log_ratio=RACE_LOG_RATIO)
    if lost := [own.setting.lr for own in trials if np.isnan(own.scores[-1])]:
        draw_crosses(ax, lost, [at_height(ax, EDGE)] * len(lost))
        entries.append(Line2D([], [], linestyle="none", marker="x", color=neutral_color(ax), label="diverged"))
    entries += [
        Line2D([], [], linestyle=":", color=neutral_color(ax), label="untrained"),
        Line2D([], [], color=VERMILION, label=f"answer, {lr:.3g}"),
        Patch(facecolor=VERMILION, alpha=0.15, label=f"as good: {low:.3g} to {high:.3g}"),
    ]
    add_legend(ax, entries)
    ax.set(xlabel="learning rate", ylabel=metric)
    ax.set_title(title)
    return ax
