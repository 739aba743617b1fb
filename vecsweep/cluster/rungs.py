"""Decisions that need all members of a plan, whose shards reach them at different times, on different machines.

A shard tells what its members did up to a rung, and waits. What it told stays, so that a decision is due when the last
shard has told, whether or not the others are still there; one that begins anew is told what was decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vecsweep._engine.keeping.record import Record
from vecsweep._types import FloatArray, Hyper
from vecsweep.evaluation import Pruning, SoFar
from vecsweep.plan import Plan


@dataclass(slots=True)
class _Rung:
    """What is known of a rung: of all members, NaN where nobody has told yet."""

    so_far: SoFar
    has_told: NDArray[np.bool_]
    waiting: set[int] = field(default_factory=set)  # workers


class Rungs:
    """The rungs of a plan.

    Args:
        plan: of all members.
        pruning: says when they are compared, and by whom.
        kept: who goes on after rungs that an earlier driver has decided, by steps.
    """

    def __init__(self, plan: Plan, pruning: Pruning, kept: Mapping[int, frozenset[int]]) -> None:
        self._plan = plan
        self._pruning = pruning
        self._rungs: dict[int, _Rung] = {}
        self._ended: list[tuple[Sequence[int], Record | None]] = []
        self.kept = dict(kept)  # by steps

    @property
    def waiting(self) -> set[int]:
        """The workers that have told, and wait."""
        return {worker for rung in self._rungs.values() for worker in rung.waiting}

    def tell(self, worker: int, members: Sequence[int], so_far: SoFar) -> None:
        """Note what the members of a worker did up to a rung, at which it waits."""
        step = so_far.num_done
        if step not in self._rungs:
            self._rungs[step] = self._blank(step, so_far)
            for ended, record in self._ended:
                self._note_end(self._rungs[step], ended, record)
        rung = self._rungs[step]
        rung.waiting.add(worker)
        _fill(rung, members, so_far.loss, so_far.hyper, so_far.metrics)
        rung.so_far.diverged_at[list(members)] = so_far.diverged_at
        rung.so_far.stopped_at[list(members)] = so_far.stopped_at

    def end(self, members: Sequence[int], record: Record | None) -> None:
        """Note that members have come to their end, and will be at no further rung; None if they were given up."""
        self._ended.append((members, record))
        for rung in self._rungs.values():
            if not rung.has_told[list(members)].all():
                self._note_end(rung, members, record)

    def leave(self, worker: int) -> None:
        """Note that a worker no longer waits; what it told stays."""
        for rung in self._rungs.values():
            rung.waiting.discard(worker)

    def decide(self) -> list[tuple[int, set[int]]]:
        """Decide what can be decided: after how many steps, and which workers wait for it."""
        decided = []
        for step, rung in sorted(self._rungs.items()):
            if step not in self.kept and rung.has_told.all():
                self.kept[step] = frozenset(self._pruning.keep(rung.so_far))
            if step in self.kept and rung.waiting:
                decided.append((step, rung.waiting))
                rung.waiting = set()
        return decided

    def _blank(self, step: int, so_far: SoFar) -> _Rung:
        num = len(self._plan.members)

        def nothing(name: str, values: FloatArray) -> FloatArray:
            return np.full((len(values), num), np.nan)

        metrics = {name: nothing(name, values) for name, values in so_far.metrics.items()}
        hyper = {name: values[:step].copy() for name, values in self._plan.hyper.items()}
        loss = np.full((step, num), np.nan)
        blank = SoFar(step, loss, hyper, metrics, np.full(num, -1), np.full(num, -1))
        return _Rung(blank, np.zeros(num, dtype=np.bool_))

    def _note_end(self, rung: _Rung, members: Sequence[int], record: Record | None) -> None:
        step, own = rung.so_far.num_done, list(members)
        if record is None:
            rung.has_told[own] = True
            rung.so_far.stopped_at[own] = 0
            return
        rows = len(next(iter(rung.so_far.metrics.values()), ()))
        _fill(
            rung,
            members,
            record.loss[:step],
            {name: values[:step] for name, values in record.hyper.items()},
            {name: values[:rows] for name, values in record.metrics.items()},
        )
        rung.so_far.diverged_at[own] = np.where(record.diverged_at < step, record.diverged_at, -1)
        rung.so_far.stopped_at[own] = np.where(record.stopped_at <= step, record.stopped_at, -1)


def _fill(rung: _Rung, members: Sequence[int], loss: FloatArray, hyper: Hyper, metrics: dict[str, FloatArray]) -> None:
    """Put what some members did among what all did."""
    own = list(members)
    rung.has_told[own] = True
    rung.so_far.loss[: len(loss), own] = loss
    for values, parts in ((rung.so_far.hyper, hyper), (rung.so_far.metrics, metrics)):
        for name, part in parts.items():
            values[name][: len(part), own] = part
