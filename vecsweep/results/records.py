"""Curves in long format: a row for each member, step and metric, up to where the member ended."""

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from vecsweep._types import IntArray

if TYPE_CHECKING:
    from vecsweep.results.curves import Curves

_ROUNDING = 1e-9  # of epochs, whose lengths in steps need not be whole


def column_names(runs: "Curves") -> list[str]:
    """Return the names of what `rows_of` yields."""
    return [
        *("member", "lr", "schedule", *runs.members[0].hyper, "seed"),
        *("step", "epoch", "metric", "value", "diverged"),
    ]


def curve_names(runs: "Curves") -> list[str]:
    """Return the names of all curves, in the order of the rows."""
    return ["train_loss", "lr", *runs.hyper, *runs.norms, *runs.metrics]


def rows_of(runs: "Curves") -> Iterator[tuple[Any, ...]]:
    """Yield the rows, as they are asked for."""
    ends, diverged_at = steps_of(runs).tolist(), runs.diverged_at.tolist()
    for i, member in enumerate(runs.members):
        own = (i, member.lr, member.schedule, *member.hyper.values(), member.seed)
        for name in curve_names(runs):
            steps, values = runs.curve(name)
            is_measured = name in runs.metrics
            is_there = ~np.isnan(values[:, i]) if is_measured else steps < ends[i]
            own_steps = steps[is_there]
            epochs = epochs_of(runs, own_steps, is_measured=is_measured)
            yield from zip(
                *map(repeat, own),
                own_steps.tolist(),
                repeat(None) if epochs is None else epochs.tolist(),
                repeat(name),
                values[is_there, i].tolist(),
                (own_steps == diverged_at[i]).tolist(),
                strict=False,
            )


def steps_of(runs: "Curves") -> IntArray:
    """Return how many steps each member has rows of, `[member]`: the one at which it diverged is the last."""
    ends = np.where(runs.stopped_at >= 0, runs.stopped_at, len(runs.train_loss))
    return np.where(runs.diverged_at >= 0, runs.diverged_at + 1, ends)


def epochs_of(runs: "Curves", steps: IntArray, *, is_measured: bool) -> IntArray | None:
    """Return the epochs that steps are in, `[step]`, of measurements those that they end; None if unknown."""
    if runs.steps_per_epoch is None:
        return None
    epochs = np.maximum(0, steps - is_measured) / runs.steps_per_epoch
    return np.floor(epochs + _ROUNDING).astype(np.int64)
