"""How settings look: which of the things that vary is told by colour, which by the line style, and the legend of both.

The first thing that varies, in the order lr, schedule, other hyperparameters, is told by colour: numbers by colours in
their order, schedules by distinct ones. All else is told by the line style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vecsweep.plot._axes import neutral_color
from vecsweep.results.ranking import Setting
from vecsweep.results.views import describe_value, find_varying, value_of

Line = Any  # what matplotlib takes for a line style: "--", or (offset, (ink, gap, ...))

BLUE = "#0072B2"
VERMILION = "#D55E00"
_COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # and the neutral one
_LINES: tuple[Line, ...] = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (10, 3)), (0, (2, 3)), (0, (5, 1, 1, 1)))
_MOST_ENTRIES = 10  # of a legend, besides what marks and bands mean; numbers beyond that have a colour bar


class Look(NamedTuple):
    """How the curve of a setting is drawn."""

    color: Any
    line: Line


@dataclass(frozen=True, slots=True)
class Looks:
    """How settings are drawn.

    Attributes:
        by_setting: the look of each.
        entries: of the legend.
        scale: what a colour bar shows; None if the legend has all colours.
        scale_label: of the colour bar.
    """

    by_setting: dict[Setting, Look]
    entries: tuple[Line2D, ...]
    scale: ScalarMappable | None = None
    scale_label: str = ""

    def add_color_bar(self, *axes: Axes) -> None:
        """Draw the colour bar beside axes, if the colours need one."""
        if self.scale is not None:
            axes[0].figure.colorbar(self.scale, ax=list(axes), label=self.scale_label)


def choose_looks(settings: Sequence[Setting], ax: Axes, *, without: Sequence[str] = ()) -> Looks:
    """Choose how settings are drawn on these axes.

    Args:
        settings: which.
        ax: where; colours differ on a dark ground.
        without: what needs no telling apart, because an axis does that.
    """
    varying = {name: values for name, values in find_varying(settings).items() if name not in without}
    neutral = neutral_color(ax)
    if not varying:
        return Looks(dict.fromkeys(settings, Look(BLUE, "-")), ())
    (colored, values), *others = varying.items()
    styled = [name for name, _ in others]
    combinations = list(dict.fromkeys(tuple(value_of(setting, name) for name in styled) for setting in settings))
    lines = {key: _LINES[i % len(_LINES)] for i, key in enumerate(combinations)}
    is_distinct = colored == "schedule"
    scale = None if is_distinct else _scale(values, is_dark=_is_dark(ax))
    entries = []
    colors: dict[Any, Any]
    if scale is None:
        palette = (*_COLORS, neutral)
        colors = {value: palette[i % len(palette)] for i, value in enumerate(values)}
        own_lines = {value: _LINES[i // len(palette)] for i, value in enumerate(values)}
    else:
        has_bar = len(values) + (len(lines) if styled else 0) > _MOST_ENTRIES
        positions = scale.norm(np.array(values)) if has_bar else np.linspace(0, 1, len(values))
        colors = dict(zip(values, scale.get_cmap()(positions), strict=True))
        own_lines = dict.fromkeys(values, _LINES[0])
        scale = scale if has_bar else None
    looks = {}
    for setting in settings:
        value, key = value_of(setting, colored), tuple(value_of(setting, name) for name in styled)
        looks[setting] = Look(colors[value], lines[key] if styled else own_lines[value])
    if scale is None:
        entries += [
            make_entry(describe_value(colored, value), colors[value], "-" if styled else own_lines[value])
            for value in values
        ]
    if styled:
        texts = {key: ", ".join(map(describe_value, styled, key)) for key in combinations}
        entries += [make_entry(text, neutral, lines[key], linewidth=1.4) for key, text in texts.items()]
    return Looks(looks, tuple(entries), scale, "learning rate" if colored == "lr" else colored)


def make_entry(label: str, color: Any, line: Line = "none", **look: Any) -> Line2D:
    """Make an entry of a legend that stands for several things drawn."""
    return Line2D([], [], label=label, color=color, linestyle=line, **look)


def make_band_entry(label: str, color: Any) -> Patch:
    """Make the entry of a legend that stands for bands."""
    return Patch(label=label, facecolor=color, alpha=0.25, linewidth=0)


def make_color_map(*, is_dark: bool = False) -> ListedColormap:
    """Make the colours of numbers in order: viridis without the end that is lost on the ground."""
    return ListedColormap(colormaps["viridis"](np.linspace(0.25, 1.0, 256) if is_dark else np.linspace(0.0, 0.88, 256)))


def _scale(values: Sequence[float], *, is_dark: bool) -> ScalarMappable:
    is_positive = min(values) > 0
    norm = (LogNorm if is_positive else Normalize)(min(values), max(values))
    return ScalarMappable(norm, make_color_map(is_dark=is_dark))


def _is_dark(ax: Axes) -> bool:
    return float(np.dot(to_rgb(ax.get_facecolor()), (0.299, 0.587, 0.114))) < 0.5
