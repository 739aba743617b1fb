"""What pictures against the learning rate have in common: axes, bands, crosses at the edge, lines and areas across."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.report.blocks import Trace, pack
from vecsweep.results.views import LOG_RATIO

LR_AXIS = {"title": {"text": "learning rate"}, "type": "log"}
_AT_TOP = {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top"}  # of a vertical line
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "hexagon", "cross")


def band_trace(
    x: FloatArray,  # [point]
    low: FloatArray,  # [point], NaN in gaps
    high: FloatArray,  # [point]
    color: str,
) -> Trace:
    """Return an area between two curves, a polygon for each stretch without gaps."""
    xs, ys = list[float](), list[float]()
    is_whole = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_whole, [False]]).astype(int)))
    for begin, end in edges.reshape(-1, 2).tolist():
        xs += [*x[begin:end], *x[begin:end][::-1], math.nan]
        ys += [*low[begin:end], *high[begin:end][::-1], math.nan]
    look = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": color, "hoverinfo": "skip"}
    return {"x": pack(xs), "y": pack(ys), **look}


def value_axis(title: str, view: tuple[float, float] | None, log_ratio: float = LOG_RATIO) -> dict[str, Any]:
    """Return an axis of values, of which there is a part to be seen; logarithmic over a wide ratio."""
    return {"title": {"text": title}, "type": "log" if view is not None and is_wide(*view, log_ratio) else "linear"}


def is_wide(bottom: float, top: float, log_ratio: float = LOG_RATIO) -> bool:
    """Whether an axis of these values begins logarithmic."""
    return bool(bottom > 0 and top > log_ratio * bottom)


def cross_trace(lrs: Sequence[float], name: str) -> Trace:
    """Return crosses at the upper edge, on an axis of their own."""
    marker = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": "@ink"}}
    hover = {"hovertemplate": "%{x:.3~g}<extra>%{fullData.name}</extra>"}
    return {"x": lrs, "y": [0.97] * len(lrs), "yaxis": "y2", "mode": "markers", "marker": marker, "name": name, **hover}


def straight_line(axis: str, at: float, color: str, dash: str = "solid") -> dict[str, Any]:
    """Return a line across the picture, at a value of an axis, "x" or "y"."""
    other = "x" if axis == "y" else "y"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", **ends, "line": {"color": color, "width": 1.5, "dash": dash}, "layer": "between"}


def vertical_line(lr: float, color: str, dash: str = "solid", name: str = "") -> dict[str, Any]:
    """Return a line at a learning rate, with its name at the upper end."""
    label = {"label": {"text": name, "font": {"color": color}, **_AT_TOP}} if name else {}
    return straight_line("x", lr, color, dash) | label


def interval_area(low: float, high: float) -> dict[str, Any]:
    """Return the area between two learning rates."""
    ends = {"x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "rect", **ends, "fillcolor": "@1/0.15", "line": {"width": 0}, "layer": "below"}
