"""The pictures of a sweep, by kind."""

from typing import get_args

from matplotlib.axes import Axes

from vecsweep._types import Mode, PlotKind
from vecsweep.execution import check_choice
from vecsweep.plot.curves import plot_curves
from vecsweep.plot.final import plot_final
from vecsweep.plot.heatmap import plot_heatmap
from vecsweep.plot.plan import plot_plan
from vecsweep.results.curves import Curves


def plot_sweep(
    runs: Curves,
    ax: Axes | None = None,
    *,
    kind: PlotKind = "curves",
    metric: str | None = None,
    mode: Mode | None = None,
) -> Axes:
    """Draw what was trained.

    Args:
        runs: the sweep.
        ax: where to draw; None makes a figure of its own, which pyplot does not know of.
        kind: "curves", as in `plot_curves`; "final", as in `plot_final`; "plan", as in `plot_plan`; "heatmap", as in
            `plot_heatmap`.
        metric: what is drawn; None for "val_loss" if there is one, else "train_loss", and for "lr" in a plan.
        mode: whether less or more of it is better, "min" or "max"; None to go by its name.

    Returns:
        The axes; `.figure.savefig("runs.png")` keeps the picture, and a notebook shows `.figure`.

    Raises:
        ValueError: there is no such kind or metric, or the kind does not suit what varies.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> from vecsweep.plot import plot_sweep
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> task = vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=optimizer)
        >>> runs = vs.sweep(task, lrs=[0.01, 0.1], schedules=["constant", "cosine"], seeds=3, num_steps=20)
        >>> plot_sweep(runs, kind="final").get_title()
        '12 members: 2 lrs, 2 schedules, 3 seeds'
    """
    check_choice("kind", kind, get_args(PlotKind))
    if kind == "plan":
        ax = plot_plan(runs, ax, name="lr" if metric is None else metric)
    else:
        draw = {"curves": plot_curves, "final": plot_final, "heatmap": plot_heatmap}[kind]
        ax = draw(runs, ax, metric=metric, mode=mode)
    ax.title.set_wrap(True)  # a legend beside the axes leaves it less room
    return ax
