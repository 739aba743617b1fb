"""The picture that `LRFinder.plot` draws, as torch-lr-finder composes it: a curve, a point, perhaps a vertical line."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from vecsweep.plot._looks import BLUE, VERMILION


def new_axes() -> Axes:
    """Make a figure that pyplot knows of, for programs that show it or save it there."""
    return plt.subplots()[1]


def show() -> None:
    """Show pyplot's figures, where there is a screen."""
    plt.show()


def draw(
    ax: Axes,
    lrs: Sequence[float],  # [step]
    losses: Sequence[float],  # [step]
    *,
    by_seed: Sequence[Sequence[float]],  # [seed, step]
    marked: int | None,
    show_lr: float | None,
    is_log: bool,
) -> Axes:
    """Draw a range test.

    Args:
        ax: where.
        lrs: tried.
        losses: against which they are drawn.
        by_seed: the losses of each seed, drawn as a band; empty for one seed.
        marked: the step that is suggested; None for none.
        show_lr: where a vertical line is drawn; None for none.
        is_log: whether the learning-rate axis is logarithmic.
    """
    (line,) = ax.plot(lrs, losses, color=BLUE)
    if by_seed:
        line.set_label("mean of the seeds")
        low, high = np.fmin.reduce(by_seed), np.fmax.reduce(by_seed)
        ax.fill_between(
            lrs, low, high, color=BLUE, alpha=0.2, linewidth=0, label=f"lowest to highest of {len(by_seed)} seeds"
        )
    if marked is not None:
        label = f"steepest gradient: {lrs[marked]:.2E}"
        ax.scatter(lrs[marked], losses[marked], s=75, color=VERMILION, zorder=3, label=label)
    if by_seed or marked is not None:
        ax.legend()
    if is_log:
        ax.set_xscale("log")
    ax.set(xlabel="Learning rate", ylabel="Loss")
    if show_lr is not None:
        ax.axvline(show_lr, color=VERMILION)
    return ax
