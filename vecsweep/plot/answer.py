"""The race for a learning rate: the metric against the learning rate, a line for each rung."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vecsweep.plot._axes import add_grid, at_height, draw_crosses, find_view, limit_values, neutral_color, new_axes
from vecsweep.plot._looks import BLUE, VERMILION
from vecsweep.results.answer import Answer

_FAINTEST = 0.3  # of the first rung's line; the last is opaque


def plot_answer(answer: Answer, ax: Axes | None = None) -> Axes:
    """Draw the best combination's race, the answer and its interval.

    Args:
        answer: what was found.
        ax: where to draw; None makes a figure.
    """
    ax = ax or new_axes()
    best = answer.winner.setting
    trials = sorted(
        (own for own in answer.trials if (own.setting.schedule, own.setting.hyper) == (best.schedule, best.hyper)),
        key=lambda own: own.setting.lr,
    )
    rungs = sorted({rung for trial in trials for rung in trial.rungs})
    values = np.array([score for trial in trials for score in trial.scores])
    entries: list[Line2D | Patch] = []
    for place, rung in enumerate(rungs):
        points = [
            (own.setting.lr, own.scores[own.rungs.index(rung)])
            for own in trials
            if rung in own.rungs and np.isfinite(own.scores[own.rungs.index(rung)])
        ]
        alpha = _FAINTEST + (1 - _FAINTEST) * (place + 1) / len(rungs)
        steps = f"after {max(1, round(rung * answer.num_steps))} steps"
        ax.plot(*zip(*points, strict=True), "o-", color=BLUE, alpha=alpha, markersize=4, linewidth=1.5)
        entries.append(Line2D([], [], marker="o", color=BLUE, alpha=alpha, markersize=4, label=steps))
    low, high = answer.interval
    ax.axvspan(low, high, color=VERMILION, alpha=0.15, linewidth=0)
    ax.axvline(answer.lr, color=VERMILION, linewidth=1.5)
    ax.axhline(answer.start, color=neutral_color(ax), linestyle=":", linewidth=1)
    ax.set_xscale("log")
    add_grid(ax)
    limit_values(ax, *find_view(np.append(values, answer.start), answer.start, answer.mode))
    if lost := [own.setting.lr for own in trials if np.isnan(own.scores[-1])]:
        draw_crosses(ax, lost, [at_height(ax, 0.965)] * len(lost))
        entries.append(Line2D([], [], linestyle="none", marker="x", color=neutral_color(ax), label="diverged"))
    entries += [
        Line2D([], [], linestyle=":", color=neutral_color(ax), label="untrained"),
        Line2D([], [], color=VERMILION, label=f"answer, {answer.lr:.3g}"),
        Patch(facecolor=VERMILION, alpha=0.15, label=f"as good: {low:.3g} to {high:.3g}"),
    ]
    ax.legend(handles=entries, fontsize="small")
    ax.set(xlabel="learning rate", ylabel=answer.metric)
    held = "".join(f", {name} {value:.4g}" for name, value in answer.hyper.items())
    ax.set_title(f"Race for {answer.num_steps} steps of {answer.schedule!r}{held}")
    return ax
