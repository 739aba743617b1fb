"""The picture of an LR range test: the loss against the learning rate, and the suggestions."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes

from vecsweep._types import FloatArray, IntArray, Method
from vecsweep._words import counted
from vecsweep.plot._axes import EDGE, add_grid, at_height, axes_for, draw_crosses, limit_values, say_instead
from vecsweep.plot._looks import BLUE, VERMILION
from vecsweep.results.views import find_view
from vecsweep.suggest import RAMP_SMOOTHING, Suggestion, smooth


class _Mark(NamedTuple):
    """How a suggestion is marked: a line across the axes, and a point on the curve."""

    color: str
    line: str
    marker: str
    width: float
    size: float


_DEFAULT = _Mark(VERMILION, "-", "o", 1.8, 9)
_OTHERS = (
    _Mark("#009E73", "--", "s", 1.2, 6),
    _Mark("#CC79A7", ":", "D", 1.5, 6),
    _Mark("#E69F00", "-.", "^", 1.2, 7),
)
_LOG_RATIO = 100  # of the highest to the lowest loss in view, from which on the loss axis is logarithmic


class RangeCurve(Protocol):
    """What is read of a range test: a `vecsweep.RangeTest`, whose attributes these are."""

    @property
    def method(self) -> Method:
        """A "grid" of learning rates, or a "ramp"."""

    @property
    def is_complete(self) -> bool:
        """False when Ctrl-C stopped it early."""

    @property
    def lr(self) -> FloatArray:
        """What each update used, `[step, member]`."""

    @property
    def train_loss(self) -> FloatArray:
        """Before each update, `[step, member]`."""

    @property
    def lrs(self) -> FloatArray:
        """The learning rates tested, `[lr]`."""

    @property
    def scores(self) -> FloatArray:
        """The loss at each, `[lr]`; NaN where a seed diverged."""

    @property
    def scores_by_seed(self) -> FloatArray:
        """The same of each seed, `[lr, seed]`."""

    @property
    def diverged_at(self) -> IntArray:
        """The step at which each member diverged, `[member]`; -1 if it did not."""

    def suggest(self, rule: str | None = None) -> Suggestion:
        """Read a learning rate off the curve by a rule."""


def plot_range_test(found: RangeCurve, ax: Axes | None = None, *, rules: Sequence[str] | None = None) -> Axes:
    """Draw the loss against the learning rate, with the spread over seeds, suggestions, and what diverged.

    The curve is the one that `found.suggest` reads: the scores; of a ramp, the scores smoothed, beside a thin
    line of the scores themselves. The band reaches from the lowest seed to the highest, smoothed like the
    curve. A cross marks where a member diverged: for a grid its learning rate, at the upper edge; for a ramp
    the learning rate and the loss at which it left, or the upper edge if that loss is out of view. Where a
    seed diverged the curve has a gap, and the band is that of the seeds that remain.

    The learning-rate axis is logarithmic, unless the learning rates are equally far apart. The loss axis ends
    half again as far above the lowest loss as the usual loss is, the larger of the untrained model's and the
    median, so that what explodes does not squash the rest. It is logarithmic if the highest loss in view is
    more than 100 times the lowest.

    Args:
        found: the range test.
        ax: where to draw; None makes a figure of its own, which pyplot does not know of.
        rules: names of the rules whose suggestions are marked, lightly, beside the default suggestion; None for
            "steepest" and "valley" of a ramp, and "lowest" of a grid.

    Returns:
        The axes; `.figure.savefig("lr.png")` keeps the picture, and a notebook shows `.figure`.

    Raises:
        ValueError: there is no such rule.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> from vecsweep.plot import plot_range_test
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> task = vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=optimizer)
        >>> found = vs.range_test(task, start_lr=1e-4, end_lr=10, num_lrs=16, num_steps=10)
        >>> plot_range_test(found).get_title()
        'LR range test (grid): 16 lrs, 10 steps, 1 seed'
    """
    ax = axes_for(ax)
    _describe(ax, found)
    if np.isfinite(found.scores).any():
        smoothing = RAMP_SMOOTHING if found.method == "ramp" else 0.0
        by_seed = smooth(found.scores_by_seed, smoothing)
        low, high = np.fmin.reduce(by_seed, axis=1), np.fmax.reduce(by_seed, axis=1)
        _draw_curve(ax, found, smoothing)
        _draw_band(ax, found, low, high)
        usual = ("steepest", "valley") if found.method == "ramp" else ("lowest",)
        _draw_suggestions(ax, found, usual if rules is None else rules)
        _limit_losses(ax, found, low, high)
    else:
        _say_all_diverged(ax, found)
    _draw_diverged(ax, found)
    ax.legend(fontsize="small", framealpha=0.9)
    return ax


def _describe(ax: Axes, found: RangeCurve) -> None:
    """Put the title, the labels, the learning-rate axis and the grid in place."""
    num_steps = len(found.train_loss)
    if found.method == "ramp":
        loss = "loss at the step that tried it"
        counts = [f"{counted(len(found.lrs), 'lr')}, one a step"]
    else:
        tail = "mean of the last tenth" if num_steps // 10 > 1 else "at the last"
        loss = f"loss, {tail} of {counted(num_steps, 'step')}"
        counts = [counted(len(found.lrs), "lr"), counted(num_steps, "step")]
    counts.append(counted(_num_seeds(found), "seed"))
    if not found.is_complete:
        counts.append("interrupted")
    ax.set(xlabel="learning rate", ylabel=loss, title=f"LR range test ({found.method}): {', '.join(counts)}")
    ax.set_xscale("linear" if _is_linear(found.lrs) else "log")
    margin = 2 if len(found.lrs) == 1 else 1  # one lr alone spans no axis
    ends = [(found.lrs[0] / margin, 1.0), (found.lrs[-1] * margin, 1.0)]
    ax.update_datalim(ends, updatey=False)  # the range tested, also where nothing is drawn
    add_grid(ax)


def _num_seeds(found: RangeCurve) -> int:
    return int(found.scores_by_seed.shape[1])


def _is_linear(lrs: FloatArray) -> bool:
    gaps = np.diff(lrs)
    return gaps.size > 1 and bool(np.allclose(gaps, gaps.mean(), rtol=1e-3, atol=0))


def _draw_curve(ax: Axes, found: RangeCurve, smoothing: float) -> None:
    name = "loss" if _num_seeds(found) == 1 else "mean loss"
    if found.method == "ramp":
        ax.plot(found.lrs, found.scores, color=BLUE, linewidth=1.0, alpha=0.7, label=name)
        curve, label = smooth(found.scores, smoothing), f"{name}, smoothed ({smoothing:g})"
        ax.plot(found.lrs, curve, color=BLUE, linewidth=2.4, label=label)
    else:
        ax.plot(found.lrs, found.scores, color=BLUE, linewidth=2.0, marker=".", markersize=5, label=name)


def _draw_band(
    ax: Axes,
    found: RangeCurve,
    low: FloatArray,  # [lr]
    high: FloatArray,  # [lr]
) -> None:
    if _num_seeds(found) > 1:
        smoothed = "smoothed, " if found.method == "ramp" else ""
        label = f"{smoothed}lowest to highest of {_num_seeds(found)} seeds"
        ax.fill_between(found.lrs, low, high, color=BLUE, alpha=0.2, linewidth=0, label=label)


def _draw_suggestions(ax: Axes, found: RangeCurve, rules: Sequence[str]) -> None:
    default = found.suggest()
    others = [other for other in map(found.suggest, rules) if other.rule != default.rule]
    doubt = ", doubtful" if default.doubts else ""
    _draw_suggestion(ax, default, _DEFAULT, f"suggestion: {default.lr:.3g} ({default.rule}{doubt})")
    for i, other in enumerate(others):
        _draw_suggestion(ax, other, _OTHERS[i % len(_OTHERS)], f"{other.rule}: {other.lr:.3g}")


def _draw_suggestion(ax: Axes, suggestion: Suggestion, mark: _Mark, label: str) -> None:
    line: dict[str, Any] = {"color": mark.color, "linestyle": mark.line, "linewidth": mark.width}
    point: dict[str, Any] = {"marker": mark.marker, "markersize": mark.size}
    point["markeredgecolor"] = ax.get_facecolor()  # parts the point from the curve
    ax.axvline(suggestion.lr, zorder=1 + mark.width / 2, **line)  # below the curve
    ax.plot([suggestion.lr], [suggestion.loss], zorder=2 + mark.width, label=label, **line, **point)


def _limit_losses(
    ax: Axes,
    found: RangeCurve,
    low: FloatArray,  # [lr]
    high: FloatArray,  # [lr]
) -> None:
    """Choose the scale and the limits of the loss axis, by the losses where no seed diverged."""
    is_whole = np.isfinite(found.scores)
    drawn = np.stack([found.scores, low, high])[:, is_whole]
    usual = float(np.fmax(np.median(found.scores[is_whole]), found.train_loss[0].mean()))
    limit_values(ax, *find_view(drawn, usual, "min"), log_ratio=_LOG_RATIO)


def _draw_diverged(ax: Axes, found: RangeCurve) -> None:
    (left,) = np.nonzero(found.diverged_at >= 0)
    if left.size == 0:
        return
    if found.method == "ramp":
        steps = found.diverged_at[left]
        lrs, losses = found.lr[steps, left], found.train_loss[steps, left]
        label = f"diverged: {lrs.size} of {counted(_num_seeds(found), 'seed')}"
    else:
        lrs = np.unique(found.lr[0, left])
        losses = np.full(lrs.size, np.nan)
        what = "diverged" if _num_seeds(found) == 1 else "a seed diverged"
        label = f"{what}: {lrs.size} of {counted(len(found.lrs), 'lr')}"
    edge = at_height(ax, EDGE)
    draw_crosses(ax, lrs, np.where(np.isfinite(losses), np.fmin(losses, edge), edge), label=label)


def _say_all_diverged(ax: Axes, found: RangeCurve) -> None:
    has_survivors = bool(np.isfinite(found.scores_by_seed).any())
    what = "A seed diverged at every learning rate" if has_survivors else "Every learning rate diverged"
    remedy = "Lower `start_lr`, or look for NaN in the data and the loss."
    say_instead(ax, f"{what},\nfrom {found.lrs[0]:.3g} up.\n\n{remedy}")
