"""A run on a cluster that is kept: in its folder the driver notes who was dealt what, and each shard has a folder.

The folder is one that all machines see, on a disk that they share or at a URL. Weights lie there and nowhere else: what
goes on from a result has its workers read them.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vecsweep._engine.keeping.record import Record, join
from vecsweep._engine.keeping.snapshot import Identity, check_identity, identify
from vecsweep._errors import ResultFileError
from vecsweep._interrupts import Stop
from vecsweep.checkpoint.disk import clean, write_json
from vecsweep.checkpoint.elsewhere import is_elsewhere
from vecsweep.checkpoint.keeper import FolderKeeper, Interval
from vecsweep.checkpoint.signals import Signals
from vecsweep.checkpoint.snapshots import snapshots_in, unpack_end
from vecsweep.checkpoint.stored import OpenFolder, Stored, opened
from vecsweep.cluster.job import Job
from vecsweep.cluster.joining import Part, learners_here
from vecsweep.evaluation import Evaluation
from vecsweep.plan import Plan

_DEALT = "shards.json"


class ShardKeeper(FolderKeeper):
    """Keeps snapshots of members of a shard; where the shard is to stop, it does so when its next window is over.

    Args:
        folder: as for any keeper.
        interval: likewise.
        signals: likewise.
        is_stopped: whether the shard is to stop.
    """

    def __init__(self, folder: Path, interval: Interval, signals: Signals, is_stopped: Callable[[], bool]) -> None:
        super().__init__(folder, interval, signals)
        self._is_stopped = is_stopped

    def is_due(self, num_done: int) -> bool:
        """Whether a snapshot is wanted after so many steps.

        Raises:
            Stop: the shard is to stop; the loop keeps where it stands.
        """
        if self._is_stopped():
            raise Stop
        return super().is_due(num_done)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard is kept, and how often.

    Attributes:
        folder: its own.
        interval: between snapshots.
    """

    folder: Path
    interval: Interval

    def check(self, machine: str) -> None:
        """Raise ValueError where this machine does not see what the driver wrote."""
        if not (self.folder.parent / _DEALT).exists():
            raise ValueError(
                f"`checkpoint` must be a folder that all machines of a cluster see; {machine} does not see "
                f"{self.folder.parent}. Name one on a disk that they share, or a URL such as 's3://bucket/lr'."
            )

    def keeper(self, turn: int, signals: Signals, is_stopped: Callable[[], bool]) -> ShardKeeper:
        """Who keeps the members of a shard that train at the same time, the first of them or later ones."""
        folder = self.folder / f"turn-{turn}"
        if folder.is_dir():
            clean(folder)
        return ShardKeeper(folder, self.interval, signals, is_stopped)

    def record(self, plan: Plan, *, keeps_states: bool) -> tuple[Record, Identity] | None:
        """Read what a shard did, with states that stay where they are, and what was trained; None if it is not over.

        Args:
            plan: of its members.
            keeps_states: whether their states are wanted.
        """
        records, turns, identity = list[Record](), list[list[int]](), Identity()
        try:
            for turn in sorted(self.folder.glob("turn-*")) if self.folder.is_dir() else ():
                path = max(snapshots_in(turn), default=None)
                if path is None or (own := opened(path)).read("chunks") or own.read("num_done") < plan.num_steps:
                    return None
                seeds = {int(seed) for seed in own.names("ends")}
                turns.append([i for i, seed in enumerate(plan.seeds) if seed in seeds])
                states = [Stored(path, k) for k in range(len(turns[-1]))] if keeps_states else []
                records.append(_record_of(own, states))
                identity = own.read("identity")
        except ResultFileError:  # the one before may do, which whoever trains finds out
            return None
        if sum(map(len, turns)) < len(plan.members):
            return None
        return (records[0] if len(turns) == 1 else join(records, turns, len(plan.members))), identity


class Keeping:
    """The folder of a run, on the driver's side, and what earlier drivers have left in it.

    Args:
        keeper: of the run.
        job: the run.

    Attributes:
        signals: that ask for the run to be written down, or left.
        parts: of shards that are over, the members and what they did.
        begun: the members of shards that are not.
        kept: who goes on after the rungs that were decided, by steps.

    Raises:
        ResultFileError: what was noted is damaged.
        ValueError: another task was trained.
    """

    def __init__(self, keeper: FolderKeeper, job: Job) -> None:
        self._folder = keeper.folder.absolute()
        self._interval = keeper.interval
        self.signals = keeper.signals
        self._shards, self.kept = self._noted()
        self.parts: list[Part] = []
        self.begun: list[tuple[int, ...]] = []
        learners = learners_here(job) if self._shards else {}
        for members in self._shards:
            plan = job.plan.select(members)
            found = self.place_of(members).record(plan, keeps_states=job.keeps_states)
            if found is None:
                self.begun.append(members)
                continue
            own = {seed: learners[seed] for seed in plan.seeds}
            check_identity(identify(own, plan, job.execution, job.evaluation or Evaluation()), found[1])
            self.parts.append((members, found[0]))

    def _noted(self) -> tuple[list[tuple[int, ...]], dict[int, frozenset[int]]]:
        """What earlier drivers dealt out and decided."""
        path = self._folder / _DEALT
        if not path.is_file():
            return [], {}
        try:
            found = json.loads(path.read_text())
            shards = [tuple(map(int, members)) for members in found["shards"]]
            return shards, {int(step): frozenset(map(int, members)) for step, members in found["kept"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Pass `restart=True` to begin anew.") from error

    def place_of(self, members: Sequence[int]) -> Place:
        """Where a shard of these members is kept; noted, before it begins, for a driver that goes on with it."""
        members = tuple(members)
        if members not in self._shards:
            self._shards.append(members)
            self._write()
        digest = hashlib.blake2b(json.dumps(members).encode(), digest_size=8).hexdigest()
        return Place(self._folder / f"shard-{digest}", self._interval)

    def note_decision(self, step: int, kept: Collection[int]) -> None:
        """Note who goes on after a rung, before they do."""
        self.kept[step] = frozenset(kept)
        self._write()

    def _write(self) -> None:
        if not is_elsewhere(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        kept = {str(step): sorted(members) for step, members in self.kept.items()}
        write_json(self._folder / _DEALT, {"shards": [list(members) for members in self._shards], "kept": kept})


def _record_of(snapshot: OpenFolder, states: Sequence[Stored]) -> Record:
    """Make a record of the last snapshot of a run."""
    ends = {int(seed): unpack_end(snapshot.read("ends", seed)) for seed in snapshot.names("ends")} if states else {}
    same = ("loss", "hyper", "metrics", "diverged_at", "stopped_at", "engine", "in_doubt_from", "norms")
    return Record(
        **{name: snapshot.read(name) for name in same},
        states=list(states),
        learners={},
        ends=ends,
        is_batched=snapshot.read("manner")["engine"] == "vectorized",
        is_complete=True,
        earlier_s=snapshot.read("duration_s"),
    )
