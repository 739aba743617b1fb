"""What a run begins with and what it leaves: plain records, passed between the training loop and its callers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from vecsweep._arrays import blank
from vecsweep._engine.caller.rng import State
from vecsweep._engine.caller.watch import Changes
from vecsweep._engine.data.batches import Position
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._types import FloatArray, Hyper, IntArray
from vecsweep.plan import Plan


class Observer(Protocol):
    """Who is told what members do, as they do it."""

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take the losses of some steps, `[step, member]`, the first of them being `start`, and what they ran with."""

    def metrics(self, num_done: int, values: dict[str, FloatArray]) -> None:
        """Take what was measured after some steps, each `[member]`."""

    def ended(self, member: int, step: int, *, has_diverged: bool) -> None:
        """Take that a member diverged at a step, or was stopped after so many."""


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


class Elsewhere(Protocol):
    """A member's state that is not here, but is kept somewhere."""

    def fetch(self) -> MemberState:
        """Read it."""


def here(states: Iterable[MemberState | Elsewhere]) -> list[MemberState]:
    """Fetch the states that are elsewhere."""
    return [own if isinstance(own, MemberState) else own.fetch() for own in states]


@dataclass(frozen=True, slots=True)
class Start:
    """What a run goes on from.

    Attributes:
        states: `[member]`, each here or elsewhere.
        learners: by seed.
        ends: by seed, where the run before left off.
        metrics: what was measured before and is still followed, each `[evaluation, member]`.
    """

    states: list[MemberState | Elsewhere]
    learners: dict[int, Learner]
    ends: dict[int, End]
    metrics: dict[str, FloatArray]

    def select(self, members: Sequence[int]) -> "Start":
        """What some of the members go on from."""
        metrics = {name: values[:, list(members)] for name, values in self.metrics.items()}
        return replace(self, states=[self.states[i] for i in members], metrics=metrics)


@dataclass(frozen=True, slots=True)
class Record:
    """What a run did.

    Attributes:
        loss: `[step, member]`, before each update; NaN after a member diverged or stopped.
        hyper: what the updates used, each `[step, member]`.
        metrics: by name, each `[evaluation, member]`; NaN likewise.
        diverged_at: `[member]`, the step at which a member diverged; -1 if it did not.
        stopped_at: `[member]`, the updates it had taken when its metric no longer improved; -1 if it went on.
        states: `[member]`, here or elsewhere, at the end, or where it diverged; empty if they were not asked for, or
            where the run was stopped while some members were further than others.
        learners: by seed; to make a model of a state.
        ends: by seed; empty if states are.
        engine: how the members were stepped, in words.
        is_batched: whether they were stepped in one pass to the end.
        is_complete: False when Ctrl-C or an error stopped the run; it then has fewer steps than the plan.
        in_doubt_from: the step from which on numbers may be wrong, because a later check of the traced step failed;
            None if none did.
        error: what stopped the run, where it was not Ctrl-C.
        earlier_s: seconds that it took in other processes, before this one went on with it.
        norms: those that were recorded, by name, each `[step, member]`; NaN where no update was taken.
    """

    loss: FloatArray
    hyper: Hyper
    metrics: dict[str, FloatArray]
    diverged_at: IntArray
    stopped_at: IntArray
    states: list[MemberState | Elsewhere]
    learners: dict[int, Learner]
    ends: dict[int, End]
    engine: str
    is_batched: bool
    is_complete: bool
    in_doubt_from: int | None = None
    error: Exception | None = None
    earlier_s: float = 0.0
    norms: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_members: int) -> "Record":
        """What a run did that was stopped before it had begun."""
        nothing, never = np.empty((0, num_members)), np.full(num_members, -1)
        return cls(nothing, {"lr": nothing}, {}, never, never, [], {}, {}, "", is_batched=False, is_complete=False)


class Part:
    """An observer of some members, for one who is told of all: the others have NaN, which says nothing.

    Args:
        observer: of all members.
        members: the positions of those that train.
        plan: of all.
    """

    def __init__(self, observer: Observer, members: Sequence[int], plan: Plan) -> None:
        self._observer = observer
        self._members = list(members)
        self._plan = plan

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take the losses of some steps of these members."""
        rows = slice(start, start + len(loss))
        whole = {name: values[rows].copy() for name, values in self._plan.hyper.items()}
        for name, values in hyper.items():
            whole[name][:, self._members] = values
        self._observer.losses(start, _spread(loss, self._members, len(self._plan.members)), whole)

    def metrics(self, num_done: int, values: dict[str, FloatArray]) -> None:
        """Take what was measured of these members after some steps."""
        num = len(self._plan.members)
        self._observer.metrics(num_done, {name: _spread(own, self._members, num) for name, own in values.items()})

    def ended(self, member: int, step: int, *, has_diverged: bool) -> None:
        """Take that one of these members has come to its end."""
        self._observer.ended(self._members[member], step, has_diverged=has_diverged)


def join(records: Sequence[Record], turns: Sequence[Sequence[int]], num_members: int) -> Record:
    """Make one record of those of members that trained one after the other, the last of which may have been stopped.

    Args:
        records: of the turns that were begun.
        turns: the positions of the members of each turn.
        num_members: of all.
    """
    first, is_complete = records[0], len(records) == len(turns) and records[-1].is_complete
    begun = list(zip(records, turns, strict=False))

    def columns(name: str, fill: float) -> FloatArray:
        whole = np.full(num_members, fill)
        for record, members in begun:
            whole[list(members)] = getattr(record, name)
        return whole

    def rows(parts: Sequence[FloatArray]) -> FloatArray:
        whole = blank(max(map(len, parts)), num_members)
        for part, (_, members) in zip(parts, begun, strict=True):
            whole[: len(part), list(members)] = part
        return whole

    def named(name: str) -> dict[str, FloatArray]:
        return {
            key: rows([getattr(record, name).get(key, np.empty((0, len(members)))) for record, members in begun])
            for key in getattr(first, name)
        }

    states: list[MemberState | Elsewhere | None] = [None] * num_members
    for record, members in begun:
        for i, state in zip(members, record.states, strict=bool(record.states)):
            states[i] = state
    return Record(
        loss=rows([record.loss for record in records]),
        hyper=named("hyper"),
        metrics=named("metrics"),
        diverged_at=columns("diverged_at", -1).astype(np.int64),
        stopped_at=columns("stopped_at", -1).astype(np.int64),
        states=[state for state in states if state is not None] if is_complete else [],
        learners={seed: learner for record in records for seed, learner in record.learners.items()},
        ends={seed: end for record in records for seed, end in record.ends.items()} if is_complete else {},
        engine=f"{first.engine}, in each of {len(turns)} turns for the loader's workers",
        is_batched=all(record.is_batched for record in records),
        is_complete=is_complete,
        earlier_s=sum(record.earlier_s for record in records),
        norms=named("norms"),
        in_doubt_from=min((r.in_doubt_from for r in records if r.in_doubt_from is not None), default=None),
        error=records[-1].error,
    )


def _spread(values: FloatArray, members: Sequence[int], num_members: int) -> FloatArray:
    """Put the columns of some members, `[..., member]`, among those of all, which are NaN."""
    whole = np.full((*values.shape[:-1], num_members), np.nan)
    whole[..., list(members)] = values
    return whole
