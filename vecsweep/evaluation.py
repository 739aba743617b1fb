"""When members are evaluated, and who goes on then: who no longer improves, and who falls behind, is stopped.

Not here: what members train with (`plan.py`), how an evaluation is asked for (`request.py`) and made (`_engine`).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecsweep._types import FloatArray, Hyper, IntArray, Mode, NormName


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a member that no longer improves is stopped.

    Attributes:
        metric: that is watched.
        mode: "min" if less of it is better, else "max".
        patience: evaluations without a new best one.
    """

    metric: str
    mode: Mode
    patience: int

    def are_due(
        self,
        history: FloatArray,  # [evaluation, member], one evaluation at least
    ) -> NDArray[np.bool_]:
        """Which members with this history are to be stopped: `[member]`."""
        is_missing = np.isnan(history)  # no value is no improvement
        best = np.where(is_missing, np.inf, history if self.mode == "min" else -history).argmin(axis=0)
        num_since = len(history) - np.where(is_missing.all(axis=0), 0, best + 1)
        return num_since >= self.patience


@dataclass(frozen=True, slots=True)
class SoFar:
    """What the members of a run did up to some step.

    Attributes:
        num_done: updates.
        loss: `[step, member]`; NaN where a member had ended.
        hyper: what the updates used, each `[step, member]`.
        metrics: what was measured, each `[evaluation, member]`; NaN likewise.
        diverged_at: `[member]`, the step at which it diverged; -1 if it did not.
        stopped_at: `[member]`, the updates it had taken when it was stopped; -1 if it was not.
    """

    num_done: int
    loss: FloatArray
    hyper: Hyper
    metrics: dict[str, FloatArray]
    diverged_at: IntArray
    stopped_at: IntArray


@dataclass(frozen=True, slots=True)
class Pruning:
    """When members are compared, so that only some go on.

    Attributes:
        steps: after how many updates; members are evaluated there.
        metric: that is measured for it; None if what is measured anyway will do.
        keep: says which go on, by their positions.
    """

    steps: frozenset[int]
    metric: str | None
    keep: Callable[[SoFar], Collection[int]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """When members are evaluated.

    Attributes:
        steps: how many updates each evaluation comes after, ascending.
        followed: those of them that schedules and `stopping` look at; at the end of a phase there may be another.
        has_train_metrics: whether the metrics are measured on the training batches, too.
        stopping: which members are stopped; None for none.
        pruning: which others are; None for none.
        recorded: the norms that are noted at each step.
    """

    steps: tuple[int, ...] = ()
    followed: frozenset[int] = frozenset()
    has_train_metrics: bool = False
    stopping: Stopping | None = None
    pruning: Pruning | None = None
    recorded: tuple[NormName, ...] = ()

    @property
    def num(self) -> int:
        """How many evaluations there are."""
        return len(self.steps)
