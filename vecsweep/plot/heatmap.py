"""A heat map: what members came to, over the two things that vary."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from vecsweep._types import FloatArray, Mode
from vecsweep.plot._axes import axes_for
from vecsweep.plot._looks import VERMILION, make_color_map
from vecsweep.results.curves import Curves
from vecsweep.results.views import (
    LOG_RATIO,
    describe_counts,
    find_usual,
    find_varying,
    find_view,
    name_metric,
    value_of,
)

_MOST_COLUMNS = 16  # whose numbers can be read
_GREY = "#D9D9D9"


def plot_heatmap(runs: Curves, ax: Axes | None = None, *, metric: str | None = None, mode: Mode | None = None) -> Axes:
    """Draw the final value of a metric, averaged over seeds, over the two things that vary.

    The first of them, in the order lr, schedule, other hyperparameters, has the columns, the second the rows. The
    brighter a cell, the better; the best is framed. Cells of which a seed diverged are grey and hatched, and say so.
    The colours end where the view of `plot_final` does, and are logarithmic if that is.

    Args:
        runs: the sweep.
        ax: where to draw; None makes a figure of its own.
        metric: as in `Sweep.final`.
        mode: as in `Sweep.best`.

    Raises:
        ValueError: not exactly two things vary besides seeds; or there is no such metric, or its name does not tell
            whether less or more is better.
    """
    metric = name_metric(runs, metric)
    ranking = runs.ranking(metric, mode)
    settings = [standing.setting for standing in ranking.standings]
    varying = find_varying([member.setting for member in runs.members])
    if len(varying) != 2:
        raise ValueError(_ask_for_two(varying, runs))
    (column, columns), (row, rows) = varying.items()
    positions = {
        setting: (rows.index(value_of(setting, row)), columns.index(value_of(setting, column))) for setting in settings
    }
    means = np.full((len(rows), len(columns)), np.nan)
    for standing in ranking.standings:
        means[positions[standing.setting]] = standing.mean
    ax = axes_for(ax)
    size = _choose_size(ax, len(columns))
    if np.isfinite(means).any():
        _draw_cells(ax, runs, metric, means, ranking.mode, size)
        i, j = positions[ranking.best.setting]
        frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, zorder=3)
        frame.set_label("best")
        ax.add_patch(frame)
    for standing in ranking.standings:
        if standing.num_diverged:
            _draw_diverged(ax, positions[standing.setting], standing.num_diverged, len(standing.members), size)
    ax.set(
        xlim=(-0.5, len(columns) - 0.5),
        ylim=(len(rows) - 0.5, -0.5) if row == "schedule" else (-0.5, len(rows) - 0.5),
        xlabel=_LABELS.get(column, column),
        ylabel=_LABELS.get(row, row),
        title=describe_counts(runs),
    )
    _label_ticks(ax, column, columns, row, rows)
    return ax


_LABELS = {"lr": "learning rate"}


def _ask_for_two(varying: dict[str, list[Any]], runs: Curves) -> str:
    counts = [f"{name} ({len(values)} values)" for name, values in varying.items()]
    there = ", ".join(counts) or "none"
    rule = f"A heat map needs exactly two things that vary besides {runs.repeat}s; here vary {there}."
    if len(varying) < 2:
        return f'{rule} Draw `kind="final"` instead.'
    name, values = list(varying.items())[-1]
    return f'{rule} Take some of the members, such as `runs.select({name}={values[0]!r}).plot(kind="heatmap")`.'


def _choose_size(ax: Axes, num_columns: int) -> float:
    """The size of numbers, in points: a sixth of a column, for "diverged" is to fit in it."""
    width = 72 * ax.bbox.width / ax.figure.dpi
    return max(5.0, min(10.0, width / num_columns / 6))


def _draw_cells(
    ax: Axes,
    runs: Curves,
    metric: str,
    means: FloatArray,  # [row, column]
    mode: Mode,
    size: float,
) -> None:
    """Fill the cells that have a mean, with its number in them, and draw the colour bar."""
    low, high = find_view(means, find_usual(runs, metric, means), mode)
    norm = (LogNorm if low > 0 and high > LOG_RATIO * low else Normalize)(low, high)
    norm.clip = True
    full = make_color_map()
    color_map = full.reversed() if mode == "min" else full
    image = ax.imshow(np.ma.masked_invalid(means), cmap=color_map, norm=norm, aspect="auto")
    extend = {"min": "max", "max": "min"}[mode] if (means > high).any() or (means < low).any() else "neither"
    label = f"mean final {metric}, {'lower' if mode == 'min' else 'higher'} is better"
    ax.figure.colorbar(image, ax=ax, label=label, extend=extend)
    if means.shape[1] > _MOST_COLUMNS:
        return
    for (i, j), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            lightness = float(np.dot(color_map(norm(mean))[:3], (0.299, 0.587, 0.114)))
            color = "black" if lightness > 0.45 else "white"
            ax.text(j, i, f"{mean:.3g}", ha="center", va="center", color=color, fontsize=size)


def _draw_diverged(ax: Axes, position: tuple[int, int], num_diverged: int, num_seeds: int, size: float) -> None:
    i, j = position
    cell = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_GREY, edgecolor="white", hatch="///", linewidth=1)
    ax.add_patch(cell)
    text = "diverged" if num_diverged == num_seeds else f"{num_diverged} of {num_seeds}\ndiverged"
    background = {"facecolor": _GREY, "edgecolor": "none", "pad": 1.0}
    ax.text(j, i, text, ha="center", va="center", color="black", fontsize=0.85 * size, bbox=background)


def _label_ticks(ax: Axes, column: str, columns: list[Any], row: str, rows: list[Any]) -> None:
    names = [_text(column, value) for value in columns]
    is_long = sum(map(len, names)) > 60
    ax.set_xticks(range(len(columns)), names)
    if is_long:
        ax.tick_params(axis="x", labelrotation=30)
    ax.set_yticks(range(len(rows)), [_text(row, value) for value in rows])


def _text(name: str, value: Any) -> str:
    return str(value) if name == "schedule" else f"{value:.3g}"
