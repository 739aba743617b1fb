"""A run on a cluster without a cluster: the members are dealt out by `vecsweep.cluster.shares`, and time is a number.

What is simulated of a device: how fast it is, how well that was measured, how long it takes to start, and that it goes
for good. A shard that it had begins anew, on whoever is free, or goes on from its last checkpoint. Nothing is trained.
"""

import heapq
import random
from dataclasses import dataclass, field

from vecsweep.cluster.shares import Shares

PER_DEVICE = 100  # members
GREET_S = 20.0  # from when a worker is asked for until it has the task, and was timed


@dataclass(frozen=True)
class Scenario:
    """What is to be simulated.

    Attributes:
        num_devices: at the start; none are replaced.
        num_members: of the plan; ten of each seed.
        ideal_s: what all devices together would take, if they were of the middle speed and none failed.
        start_s: that a shard takes besides: reading, tracing.
        failures: of a device, in an hour.
        speeds: that devices may have.
        error: of the speed as it was measured, as a standard deviation.
        checkpoint_s: between checkpoints of a shard; None where there are none.
    """

    num_devices: int
    num_members: int
    ideal_s: float
    start_s: float = 20.0
    failures: float = 0.01
    speeds: tuple[float, ...] = (1.0, 1.7, 3.0)
    error: float = 0.05
    checkpoint_s: float | None = None

    @property
    def member_s(self) -> float:
        """What a member takes on a device of speed 1, alone or beside others: a device that is filled."""
        middle = sorted(self.speeds)[len(self.speeds) // 2]
        return self.ideal_s * middle * self.num_devices / self.num_members


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        makespan_s: until the last member was trained.
        ideal_s: the same work divided without a rest among all devices, none of which fails or has to start.
        bound_s: likewise, by devices that work until they fail: no order of the work is faster, not even one that knows
            beforehand when each fails, and loses nothing of what it did.
        num_failed: devices.
        num_shards: that were trained to their end.
        trained: members, in the order in which they were done.
    """

    makespan_s: float
    ideal_s: float
    bound_s: float
    num_failed: int
    num_shards: int
    trained: list[int] = field(repr=False)

    @property
    def ratio(self) -> float:
        """How many times longer than the ideal it took."""
        return self.makespan_s / self.ideal_s

    @property
    def ratio_of_bound(self) -> float:
        """Likewise of what no order of the work can be faster than, as devices failed."""
        return self.makespan_s / self.bound_s


def simulate(scenario: Scenario, seed: int = 0) -> Outcome:
    """Run a scenario once."""
    draw = random.Random(seed)
    seeds = [k // 10 for k in range(scenario.num_members)]
    shares = Shares(seeds, max_restarts=3, is_whole=scenario.checkpoint_s is not None)
    speeds = {i: draw.choice(scenario.speeds) for i in range(scenario.num_devices)}
    measured = {i: max(0.1, speed * draw.gauss(1, scenario.error)) for i, speed in speeds.items()}
    fails_at = {i: draw.expovariate(scenario.failures / 3600) for i in speeds}
    events = [(at, "fails", i) for i, at in fails_at.items()]
    heapq.heapify(events)
    begun_at = dict[int, float]()  # by device
    rest = dict[tuple[int, ...], float]()  # of a shard that came back: what it takes on a device of speed 1, in seconds
    free, now, last, num_shards, trained = set(speeds), GREET_S, 0.0, 0, list[int]()
    while True:
        for i, shard in shares.deal({i: measured[i] for i in sorted(free)}).items():
            free.discard(i)
            begun_at[i] = now + scenario.start_s
            work = rest.setdefault(shard.members, len(shard.members) * scenario.member_s)
            heapq.heappush(events, (begun_at[i] + work / speeds[i], "ends", i))
        if not shares.running:
            break
        now, kind, i = heapq.heappop(events)
        if kind == "fails":
            shard = shares.lose(i)
            if shard is not None and scenario.checkpoint_s is not None:
                num_kept = max(0.0, now - begun_at[i]) // scenario.checkpoint_s
                rest[shard.members] -= num_kept * scenario.checkpoint_s * speeds[i]
            free.discard(i)
        elif fails_at[i] > now:
            trained += shares.done(i).members
            free.add(i)
            last, num_shards = now, num_shards + 1
    num_failed = sum(at < last for at in fails_at.values())
    work = scenario.num_members * scenario.member_s
    bound = _bound(work, [(speed, fails_at[i]) for i, speed in speeds.items()])
    return Outcome(last, work / sum(speeds.values()), bound, num_failed, num_shards, trained)


def _bound(work: float, devices: list[tuple[float, float]]) -> float:
    """When so much work is done by devices of such speeds that work until they fail."""
    done, now, speed = 0.0, 0.0, sum(own for own, _ in devices)
    for own, at in sorted(devices, key=lambda device: device[1]):
        if done + speed * (at - now) >= work:
            break
        done, now, speed = done + speed * (at - now), at, speed - own
    return now + (work - done) / speed
