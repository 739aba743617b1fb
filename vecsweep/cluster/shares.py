"""Who trains which members: dealt out by speed, taken back from workers that are gone, and dealt out anew.

Nothing here knows of processes or of time; `bench/bench_cluster.py` runs it for thousands of devices that do not exist.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

_SNAP = 0.25  # of a share, by which it may grow or shrink for its last seed to stay whole


@dataclass(frozen=True, slots=True)
class Shard:
    """Members that a worker trains together.

    Attributes:
        members: their positions in the plan, ascending.
        num_restarts: how often they have begun anew.
    """

    members: tuple[int, ...]
    num_restarts: int = 0


class Shares:
    """The members of a plan, and who has them.

    Members of a seed stay together where that leaves the shares even, so that its batches are read seldom.

    Args:
        seeds: `[member]`.
        max_restarts: after which members are given up.
        is_whole: whether a shard that comes back is dealt out as it was, and not in parts.
    """

    def __init__(self, seeds: Sequence[int], max_restarts: int, *, is_whole: bool = False) -> None:
        places = {seed: k for k, seed in enumerate(dict.fromkeys(seeds))}
        self._seeds = seeds
        self._max_restarts = max_restarts
        self._is_whole = is_whole
        self._fresh = sorted(range(len(seeds)), key=lambda i: (places[seeds[i]], i))
        self._returned = deque[Shard]()
        self._speeds: dict[int, float] = {}  # of who has a shard
        self.running: dict[int, Shard] = {}  # by worker
        self.lost: list[int] = []  # members
        self.num_restarts = 0  # of shards

    @property
    def is_begun(self) -> bool:
        """Whether any member was dealt out."""
        return len(self._fresh) < len(self._seeds)

    @property
    def num_waiting(self) -> int:
        """How many members nobody has."""
        return len(self._fresh) + sum(len(shard.members) for shard in self._returned)

    def deal(self, free: Mapping[int, float], num_coming: int = 0) -> dict[int, Shard]:
        """Deal out what waits.

        Args:
            free: the speeds of the workers that have nothing.
            num_coming: workers that will be there soon; of what nobody has had, they are left their share.

        Returns:
            By worker, its shard; without those for whom nothing is left.
        """
        dealt = self._deal_fresh(free, num_coming) if self._fresh and free else {}
        total = sum(free.values()) + sum(self._speeds.values())
        num_returned = sum(len(shard.members) for shard in self._returned)
        for worker, speed in free.items():
            if worker not in dealt and self._returned:
                # Others will be free soon: a share of what is left, then of what is left of that.
                dealt[worker] = self._part(math.ceil(num_returned * speed / total))
        self.running |= dealt
        self._speeds |= {worker: free[worker] for worker in dealt}
        return dealt

    def done(self, worker: int) -> Shard:
        """Note that a worker has trained its shard."""
        del self._speeds[worker]
        return self.running.pop(worker)

    def put_back(self, worker: int) -> Shard:
        """Take back the shard of a worker that is to make room."""
        shard = self.done(worker)
        self._returned.append(shard)
        return shard

    def lose(self, worker: int) -> Shard | None:
        """Take back the shard of a worker that is gone, if it had one, or give it up."""
        if worker not in self.running:
            return None
        shard = self.done(worker)
        again = replace(shard, num_restarts=shard.num_restarts + 1)
        if again.num_restarts > self._max_restarts:
            self.lost += again.members
        else:
            self.num_restarts += 1
            self._returned.append(again)
        return again

    def _deal_fresh(self, free: Mapping[int, float], num_coming: int) -> dict[int, Shard]:
        """Divide what nobody has had by speed, those to come being as fast as the others are on average."""
        total = sum(free.values()) * (1 + num_coming / len(free))
        num, begin, fraction, dealt = len(self._fresh), 0, 0.0, {}
        for worker, speed in free.items():
            fraction += speed / total
            is_last = num_coming == 0 and worker == next(reversed(free))
            end = num if is_last else self._snapped(begin, min(num, math.ceil(num * fraction - 1e-9)))
            if end > begin:
                dealt[worker] = Shard(tuple(sorted(self._fresh[begin:end])))
            begin = max(begin, end)
        del self._fresh[:begin]
        return dealt

    def _snapped(self, begin: int, end: int) -> int:
        """Where a share ends that would split a seed: at the nearest end of one, unless that is far."""
        ends = [k for k in range(begin + 1, len(self._fresh) + 1) if self._is_end(k)]
        nearest = min(ends, key=lambda k: abs(k - end), default=end)
        return nearest if abs(nearest - end) <= _SNAP * (end - begin) else end

    def _is_end(self, k: int) -> bool:
        """Whether a seed ends before the k-th of those that nobody has had."""
        return k == len(self._fresh) or self._seeds[self._fresh[k - 1]] != self._seeds[self._fresh[k]]

    def _part(self, num: int) -> Shard:
        """Take some members of the first shard that came back."""
        shard = self._returned.popleft()
        if self._is_whole or num >= len(shard.members):
            return shard
        self._returned.appendleft(replace(shard, members=shard.members[num:]))
        return replace(shard, members=shard.members[:num])
