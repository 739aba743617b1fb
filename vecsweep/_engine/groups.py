"""Groups: the chunks of a run and the members of each; how they come apart and together, and what those leave."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vecsweep._engine.caller.rng import is_same_state
from vecsweep._engine.engines import Engines
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.ways.contract import Chunk, OutOfMemory
from vecsweep._engine.ways.vectorized import Vectorized
from vecsweep.plan import Plan

_WORTH_TRIMMING = 0.6  # of a chunk's members


@dataclass(slots=True)
class Group:
    """A chunk, and of its members the positions in the plan and the seeds."""

    chunk: Chunk
    members: list[int]
    seeds: list[int]

    @property
    def columns(self) -> slice | list[int]:
        """Where its members stand in `[step, member]`: a slice where they are neighbours, which is found sooner."""
        first, last = self.members[0], self.members[-1]
        is_whole = last - first == len(self.members) - 1 and self.members == list(range(first, last + 1))
        return slice(first, last + 1) if is_whole else self.members

    def select(self, keep: Sequence[int]) -> "Group":
        """Take some members, by their positions in it."""
        return Group(self.chunk.select(keep), [self.members[i] for i in keep], [self.seeds[i] for i in keep])


@dataclass(frozen=True, slots=True)
class Grouping:
    """Hands members to the engine that is in use, and takes them back.

    Attributes:
        engines: of the run.
        plan: whose members.
        states: of those that have come to their end, `[member]`; None in the place of the others.
        keeps_states: whether the run keeps them.
    """

    engines: Engines
    plan: Plan
    states: list[MemberState | None]
    keeps_states: bool

    def load(self, members: list[int], states: Sequence[MemberState]) -> list[Group]:
        """Hand members, by their positions in the plan, to the engine; in several chunks where one finds no memory."""
        try:
            return [self._load(members, states)]
        except OutOfMemory as shortage:
            if len(members) == 1 and self.engines.offload():
                return self.load(members, states)
            size = self.engines.half_of(len(members), shortage.__cause__)
        return [*self.load(members[:size], states[:size]), *self.load(members[size:], states[size:])]

    def reload(self, group: Group) -> Group:
        """Hand the members of a chunk of another engine to the one that is now in use."""
        return self._load(group.members, group.chunk.members(range(len(group.members))))

    def halve(self, group: Group, shortage: OutOfMemory) -> list[Group]:
        """Make two chunks of one that does not fit into memory; of one member, see that the others make room."""
        if len(group.members) == 1 and self.engines.offload():
            return [group]
        size = self.engines.half_of(len(group.members), shortage.__cause__)
        return [group.select(part) for part in (range(size), range(size, len(group.members)))]

    def split_seeds(self, group: Group) -> list[Group]:
        """Make a chunk of each seed."""
        of_seeds: dict[int, list[int]] = {}
        for i, seed in enumerate(group.seeds):
            of_seeds.setdefault(seed, []).append(i)
        return [group.select(own) for own in of_seeds.values()]

    def trim(self, group: Group, keep: list[int]) -> list[Group]:
        """Leave only some members in a chunk, by their positions, where that makes it cheaper."""
        if not keep:
            return []
        # Each new size of a stacked chunk is traced anew, so that it is about halved rather than trimmed.
        share, is_stacked = len(keep) / len(group.members), isinstance(self.engines.engine, Vectorized)
        return [group.select(keep) if share < 1 and not (is_stacked and share > _WORTH_TRIMMING) else group]

    def put_together(self, groups: list[Group], alive: list[int]) -> list[Group]:
        """Put the members that are left into as few chunks as they need; a process keeps those it has."""
        if len(groups) < 2 or not isinstance(self.engines.engine, Vectorized):
            return groups
        parts = self.engines.divide(self.plan.select(alive))
        if len(parts) >= len(groups):
            return groups
        states, left = dict[int, MemberState](), set(alive)
        for group in groups:
            own = [k for k, i in enumerate(group.members) if i in left]
            states |= zip((group.members[k] for k in own), group.chunk.members(own, is_last=True), strict=True)
        members = [[alive[k] for k in part] for part in parts]
        return [self._load(part, [states[i] for i in part]) for part in members]

    def keep(self, group: Group, positions: Iterable[int], *, is_last: bool = False) -> None:
        """Take the states of members that have come to their end, or whose chunk has."""
        if not self.keeps_states:
            return
        new = [i for i in positions if self.states[group.members[i]] is None]
        states = group.chunk.members(new, is_last=is_last) if new else []
        for i, state in zip(new, self.less_common(states, [group.seeds[i] for i in new]), strict=True):
            self.states[group.members[i]] = state

    def less_common(self, states: Iterable[MemberState], seeds: Sequence[int]) -> list[MemberState]:
        """Leave out of states where their random numbers stand, unless those of their seed stand elsewhere now."""
        mark = functools.cache(partial(self.engines.engine.streams.mark, "model"))
        return [
            replace(state, stream=None) if state.stream and is_same_state(state.stream, mark(seed)) else state
            for state, seed in zip(states, seeds, strict=True)
        ]

    def _load(self, members: list[int], states: Sequence[MemberState]) -> Group:
        seeds = [self.plan.seeds[i] for i in members]
        return Group(self.engines.engine.load(states, seeds), members, seeds)
