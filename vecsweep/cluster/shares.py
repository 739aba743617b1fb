"""Who trains which members: dealt out by speed, taken back from workers that are gone, and dealt out anew.

Nothing here knows of processes or of time; `bench/bench_cluster.py` runs it for thousands of devices that do not exist.

Reference:
    Hummel, Schmidt, Uma and Wein 1996, Load-sharing in heterogeneous systems via weighted factoring,
    https://doi.org/10.1145/237502.237576
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

# Of its even share, that a worker has at first where workers differ: the rest makes up for what was misjudged, and what
# is lost with a worker is little.
_FIRST = 0.3
_NEXT = 0.5  # of its even share of the rest, that it has whenever it is done
_LIKE = 0.8  # of another's speed, at which a worker is like it
_SNAP = 0.05  # of a share, by which it may grow or shrink for its last seed to stay whole


@dataclass(frozen=True, slots=True)
class Shard:
    """Members that a worker trains together.

    Attributes:
        members: their positions in the plan, ascending.
        num_restarts: how often they have begun anew.
        speed: of the worker that they were lost with; 0 for none.
    """

    members: tuple[int, ...]
    num_restarts: int = 0
    speed: float = 0.0


class Shares:
    """The members of a plan, and who has them.

    Members of a seed stay together where that leaves the shares even, so that its batches are read seldom.

    Args:
        seeds: `[member]`.
        max_restarts: after which members are given up.
        is_even: whether workers are equally fast, so that each needs one shard only.
        is_whole: whether a shard that comes back is dealt out as it was, and not in parts.
        begun: the members of shards that an earlier driver dealt out, and that are to be gone on with.
        done: members that have been trained already.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        max_restarts: int,
        *,
        is_even: bool = False,
        is_whole: bool = False,
        begun: Sequence[tuple[int, ...]] = (),
        done: Collection[int] = (),
    ) -> None:
        places = {seed: k for k, seed in enumerate(dict.fromkeys(seeds))}
        self._seeds = seeds
        self._max_restarts = max_restarts
        self._is_whole = is_whole
        self._first, self._next = (1.0, 1.0) if is_even else (_FIRST, _NEXT)
        had = set(done).union(*begun)
        self._fresh = sorted((i for i in range(len(seeds)) if i not in had), key=lambda i: (places[seeds[i]], i))
        self._begin = 0  # of those that nobody has had
        self._returned = deque(map(Shard, begun))
        self._speeds: dict[int, float] = {}  # of who has a shard
        self._total = 0.0  # of these
        self.running: dict[int, Shard] = {}  # by worker
        self.lost: list[int] = []  # members
        self.num_restarts = 0  # of shards

    @property
    def is_begun(self) -> bool:
        """Whether any member was dealt out."""
        return self._begin > 0

    @property
    def num_waiting(self) -> int:
        """How many members nobody has."""
        return len(self._fresh) - self._begin + sum(len(shard.members) for shard in self._returned)

    def deal(self, free: Mapping[int, float], num_coming: int = 0) -> dict[int, Shard]:
        """Deal out what waits.

        Args:
            free: the speeds of the workers that have nothing.
            num_coming: workers that will be there soon; at the first time, their shares are left to them.

        Returns:
            By worker, its shard; without those for whom nothing is left.
        """
        dealt = dict[int, Shard]()
        share = self._next
        total = self._total + sum(free.values())
        if not self.is_begun and free:
            share = self._first
            total *= 1 + num_coming / len(free)
        pool = share * self.num_waiting
        for worker, speed in free.items():
            if self.num_waiting == 0:
                break
            dealt[worker] = self._part(max(1, round(pool * speed / total)), speed)
            pool, total = pool - len(dealt[worker].members), total - speed
        self.running |= dealt
        for worker in dealt:
            self._speeds[worker] = free[worker]
            self._total += free[worker]
        return dealt

    def done(self, worker: int) -> Shard:
        """Note that a worker has trained its shard."""
        self._total -= self._speeds.pop(worker)
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
        speed = self._speeds[worker]
        shard = self.done(worker)
        again = replace(shard, num_restarts=shard.num_restarts + 1, speed=speed)
        if again.num_restarts > self._max_restarts:
            self.lost += again.members
        else:
            self.num_restarts += 1
            self._returned.append(again)
        return again

    def _part(self, num: int, speed: float) -> Shard:
        """Take so many members for a worker: a shard that was lost and is whole, else those that nobody has had."""
        if (shard := self._urgent(speed)) is not None:
            self._returned.remove(shard)
            return shard
        if (left := len(self._fresh) - self._begin) > 0:
            is_rest = self._is_whole and self._next == 1.0 and self.is_begun and self._returned
            num = left if is_rest else min(num, left)
            begin, self._begin = self._begin, self._snapped(self._begin + num, num)
            return Shard(tuple(sorted(self._fresh[begin : self._begin])))
        shard = self._returned.popleft()
        if self._is_whole or num >= len(shard.members):
            return shard
        self._returned.appendleft(replace(shard, members=shard.members[num:]))
        return replace(shard, members=shard.members[:num])

    def _urgent(self, speed: float) -> Shard | None:
        """A lost shard that is whole: perhaps so large that all wait for it if it begins late, or on a slow worker."""
        if not self._is_whole:
            return None
        lost = (shard for shard in self._returned if shard.num_restarts > 0)
        return next((shard for shard in lost if speed >= _LIKE * shard.speed), None)

    def _snapped(self, end: int, num: int) -> int:
        """Where a share ends that would split a seed: at the nearest end of one, unless that is far."""
        for distance in range(1 + math.floor(_SNAP * num)):
            for k in (end - distance, end + distance):
                if k == len(self._fresh) or (k < len(self._fresh) and self._is_end(k)):
                    return k
        return end

    def _is_end(self, k: int) -> bool:
        """Whether a seed ends before the k-th member."""
        return self._seeds[self._fresh[k - 1]] != self._seeds[self._fresh[k]]
