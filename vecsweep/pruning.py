"""Pruning: members are compared part-way, and only some go on.

What says who goes on is a function of the sweep so far; "halving" is one of them.
"""

import math
from collections.abc import Callable, Collection
from functools import partial

import numpy as np

from vecsweep._types import Mode
from vecsweep.evaluation import Pruning, SoFar
from vecsweep.plan import Course, Span
from vecsweep.results import Sweep
from vecsweep.results.ranking import group_by_setting

Prune = Callable[[Sweep], Collection[int]]

RUNGS = (1 / 8, 1 / 4, 1 / 2)  # of a schedule, after which members are halved


def halve(runs: Sweep, metric: str, mode: Mode) -> list[int]:
    """Return the members of the better half of the settings that are still trained, by their last mean over seeds.

    A setting of which a seed diverged comes last.

    Args:
        runs: so far; evaluated.
        metric: by its name in `runs.metrics`.
        mode: whether less or more of it is better.

    Reference:
        Jamieson and Talwalkar 2016, Non-stochastic best arm identification and hyperparameter optimization,
        https://arxiv.org/abs/1502.07943
    """
    values = runs.metrics[metric][-1] * (1 if mode == "min" else -1)
    values = np.where(np.isnan(values) | (runs.diverged_at >= 0), np.inf, values)
    settings = group_by_setting([member.setting for member in runs.members]).values()
    left = [members for members in settings if any(runs.members[i].stopped_at is None for i in members)]
    left.sort(key=lambda members: float(values[list(members)].mean()))
    return [i for members in left[: math.ceil(len(left) / 2)] for i in members]


def step_of(share: float, num_steps: int) -> int:
    """The updates that a share of so many is, at least one."""
    return max(1, round(share * num_steps))


def steps_of(rungs: Collection[float], course: Course, span: Span) -> frozenset[int]:
    """The updates of a span after which there are rungs of a course."""
    ends = {course.begin + step_of(share, course.num_steps) for share in rungs}
    return frozenset(step - span.begin for step in ends if span.begin < step <= span.begin + span.num_steps)


def pruning(
    prune: Prune,
    steps: frozenset[int],
    metric: str | None,
    view: Callable[[SoFar], Sweep],
    positions: Collection[int],
) -> Pruning:
    """Make of a function of sweeps what the training loop asks.

    Args:
        prune: says which members of a sweep go on.
        steps: of the span, after which it is asked.
        metric: that it needs measured; None if what is measured anyway will do.
        view: makes a sweep of what was done so far.
        positions: in that sweep, of the members that are trained.
    """
    return Pruning(steps, metric, partial(_keep, prune, view, {i: k for k, i in enumerate(positions)}))


def _keep(prune: Prune, view: Callable[[SoFar], Sweep], places: dict[int, int], so_far: SoFar) -> list[int]:
    runs = view(so_far)
    kept, num = prune(runs), len(runs.members)
    try:
        chosen = [int(i) for i in kept]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`prune` must return the members that go on, as indices; it returned {kept!r}. Return a list such as "
            "`[0, 2]`."
        ) from error
    for i in chosen:
        if not 0 <= i < num:
            raise ValueError(f"`prune` must return indices of the {num} members; it returned {i}.")
    return [places[i] for i in chosen if i in places]
