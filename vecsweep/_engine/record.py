"""What a run begins with and what it leaves: plain records, passed between the training loop and its callers."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vecsweep._engine.batches import Position
from vecsweep._engine.ensemble import MemberState
from vecsweep._engine.learner import Learner
from vecsweep._engine.rng import State
from vecsweep._engine.watch import Changes
from vecsweep._types import FloatArray, Hyper, IntArray


class Observer(Protocol):
    """Who is told what members do, as they do it."""

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take the losses of some steps, `[step, member]`, the first of them being `start`, and what they ran with."""

    def metrics(self, num_done: int, values: dict[str, FloatArray]) -> None:
        """Take what was measured after some steps, each `[member]`."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a seed's random streams stand.

    Attributes:
        model: of what its models draw.
        batches: of its batches.
        outside: what reading them has changed outside the model.
    """

    model: State
    batches: Position
    outside: Changes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """What a run goes on from.

    Attributes:
        states: `[member]`.
        learners: by seed.
        ends: by seed, where the run before left off.
        metrics: what was measured before and is still followed, each `[evaluation, member]`.
    """

    states: list[MemberState]
    learners: dict[int, Learner]
    ends: dict[int, End]
    metrics: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Record:
    """What a run did.

    Attributes:
        loss: `[step, member]`, before each update; NaN after a member diverged or stopped.
        hyper: what the updates used, each `[step, member]`.
        metrics: by name, each `[evaluation, member]`; NaN likewise.
        diverged_at: `[member]`, the step at which a member diverged; -1 if it did not.
        stopped_at: `[member]`, the updates it had taken when its metric no longer improved; -1 if it went on.
        states: `[member]`, at the end, or where it diverged; empty if they were not asked for, or not complete.
        learners: by seed; to make a model of a state.
        ends: by seed; empty if states are.
        engine: how the members were stepped, in words.
        is_batched: whether they were stepped in one pass to the end.
        is_complete: False when Ctrl-C stopped the run; it then has fewer steps than the plan.
    """

    loss: FloatArray
    hyper: Hyper
    metrics: dict[str, FloatArray]
    diverged_at: IntArray
    stopped_at: IntArray
    states: list[MemberState]
    learners: dict[int, Learner]
    ends: dict[int, End]
    engine: str
    is_batched: bool
    is_complete: bool

    @classmethod
    def empty(cls, num_members: int) -> "Record":
        """What an interrupted run did that had not begun."""
        nothing, never = np.empty((0, num_members)), np.full(num_members, -1)
        return cls(nothing, {"lr": nothing}, {}, never, never, [], {}, {}, "", is_batched=False, is_complete=False)
