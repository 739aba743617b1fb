"""What pictures have in common: new axes, the axis of steps, limits that explosions do not squash, crosses, legends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from vecsweep.results.views import LOG_RATIO

EDGE = 0.965  # where, as a fraction of the axes, stands the cross of what left the view
_FEW_DECADES = 1000  # ratio of a logarithmic axis up to which 1, 2 and 5 have ticks
_MOST_POINTS = 100_000  # of which a legend can keep clear without delay


def new_axes() -> Axes:
    """Make axes in a figure of their own, which pyplot does not know of."""
    return Figure(figsize=(8, 5), layout="constrained").add_subplot()


def axes_for(ax: Axes | None) -> Axes:
    """Return where to draw: what was given, or new axes.

    Raises:
        TypeError: what was given is no axes.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be axes of Matplotlib, or None; got {ax!r:.80}. Pass one of `plt.subplots()`.")
    return new_axes() if ax is None else ax


def add_grid(ax: Axes) -> None:
    """Draw a light grid."""
    ax.grid(visible=True, alpha=0.25)


def neutral_color(ax: Axes) -> Any:
    """Return the style's own colour of text; black would be lost on a dark one."""
    return ax.xaxis.label.get_color()


def limit_values(ax: Axes, bottom: float, top: float, log_ratio: float = LOG_RATIO) -> None:
    """Set the limits of the value axis to a view with margins, and make it logarithmic over a wide ratio."""
    if bottom > 0 and top > log_ratio * bottom:
        ax.set_yscale("log")
        ratio = top / bottom
        if ratio < _FEW_DECADES:  # powers of ten alone would leave the axis all but bare
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(bottom / ratio**0.06, top * ratio**0.09)
    else:
        height = top - bottom or abs(bottom) or 1.0
        ax.set_ylim(bottom - 0.06 * height, top + 0.09 * height)


def at_height(ax: Axes, height: float) -> float:
    """Return the value that stands at a height of the axes, from 0 to 1."""
    return float(ax.transData.inverted().transform(ax.transAxes.transform((0, height)))[1])


def draw_crosses(ax: Axes, x: ArrayLike, y: ArrayLike, **look: Any) -> None:
    """Mark what diverged; `look` has the label, and the colour unless it is neutral."""
    ax.plot(x, y, **(_CROSS | {"color": neutral_color(ax)} | look))


_CROSS: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 6, "markeredgewidth": 1.5, "zorder": 5}


def say_instead(ax: Axes, message: str) -> None:
    """Write a message where nothing can be drawn."""
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", fontsize="large")
    ax.set(ylim=(0, 1), yticks=[])


def describe_steps(ax: Axes, num_steps: int, steps_per_epoch: float | None) -> float:
    """Label the axis of steps; it counts epochs where there are two or more.

    Returns:
        What steps are divided by to stand on the axis.
    """
    unit = steps_per_epoch if steps_per_epoch and num_steps >= 2 * steps_per_epoch else 1.0
    ax.set_xlabel("step" if unit == 1.0 else f"epoch, of {unit:g} steps")
    if num_steps >= 4 * unit:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_grid(ax)
    return float(unit)


def label_lrs(ax: Axes, lrs: Sequence[float]) -> None:
    """Make the x axis one of learning rates, logarithmic, with a tick at each if there is room."""
    ax.set_xscale("log")
    gaps = np.diff(np.log(lrs)) / (np.log(lrs[-1] / lrs[0]) or 1.0)
    if len(lrs) <= 12 and gaps.min(initial=1.0) > 0.06:
        ax.set_xticks(lrs, [f"{lr:.4g}" for lr in lrs])
        ax.set_xticks([], minor=True)
    ax.set_xlabel("learning rate")


def add_legend(ax: Axes, handles: Sequence[Artist], *, is_inside: bool = False) -> None:
    """Put the legend beside the axes if their figure makes room by itself and nothing else is there, else inside."""
    if not handles:
        return
    look: dict[str, Any] = {"handles": handles, "fontsize": "small", "framealpha": 0.9}
    if ax.figure.get_layout_engine() is not None and not is_inside:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, borderaxespad=0.2, **look)
    else:
        num_points = sum(np.size(line.get_xdata()) for line in ax.get_lines())
        ax.legend(loc="best" if num_points < _MOST_POINTS else "upper right", **look)
