"""The driver's side of a run on a cluster: workers are hired, shards dealt out, news heard, records joined.

Of the members it sees losses and metrics, and no weights before the end.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecsweep import _interrupts as interrupts
from vecsweep._bars import Bar
from vecsweep._engine.keeping.record import Record
from vecsweep._engine.ways.workers import Relay
from vecsweep._errors import warn_of_loss
from vecsweep._words import counted
from vecsweep.cluster.job import Job
from vecsweep.cluster.joining import Part, join_shards
from vecsweep.cluster.keeping import Keeping
from vecsweep.cluster.news import Asked, Ended, Greeting, Left, Losses, Metrics, News
from vecsweep.cluster.ordering import order_of, places_of
from vecsweep.cluster.retelling import Retelling
from vecsweep.cluster.rungs import Rungs
from vecsweep.cluster.sending import pack, unpack
from vecsweep.cluster.session import Gone, Session
from vecsweep.cluster.shares import Shard, Shares

_PATIENCE_S = 30.0  # with workers that are slower to come than the first, before members are dealt out without them
_STANDSTILL_S = 10.0  # in which all that have members wait for others that have no place, until one makes room
_LOOK_S = 2.0  # between looks at how many devices there are
_WIND_UP_S = 60.0  # for workers to tell what they have done when Ctrl-C ends the run
_WRITE_UP_S = 600.0  # likewise, where they have weights to write
_MAX_FAILED = 3  # workers in a row that are gone before they have said anything


@dataclass(slots=True)
class _Hand:
    """A worker, as the driver knows it.

    Attributes:
        actor: of Ray.
        answer: that it was asked for last; None if it has nothing to say.
        speed: None until it has greeted.
        num_done: steps of its shard.
        num_alive: members of its shard that still train.
    """

    actor: Any
    answer: Any
    speed: float | None = None
    num_done: int = 0
    num_alive: int = 0


class Driver:
    """A run on a cluster, and where it stands.

    Args:
        job: the run.
        keeping: its folder; None where nobody keeps it.

    Raises:
        RuntimeError: while it trains, or of what it came to: no worker can be had, or all members were lost.
    """

    def __init__(self, job: Job, keeping: Keeping | None) -> None:
        self._job = job
        self._plan = job.plan
        self._keeping = keeping
        self._retelling = None if job.observer is None else Retelling(job.observer, job.plan)
        evaluation = job.evaluation
        pruning = None if evaluation is None else evaluation.pruning
        decided = {} if keeping is None else keeping.kept
        self._rungs = None if pruning is None else Rungs(job.plan, pruning, decided)
        self._hands: dict[int, _Hand] = {}
        self._num_hired = 0
        self._num_failed = 0
        self._used: set[int] = set()  # of the workers that had a shard
        self._parts: list[Part] = []
        self._relay = Relay()
        self._is_over = False
        for members, record in () if keeping is None else keeping.parts:
            self._note(members, record)
            if self._retelling is not None:
                self._retelling.past(Shard(tuple(members)), record, () if evaluation is None else evaluation.steps)

    @property
    def is_done(self) -> bool:
        """Whether all members were trained, by earlier drivers, say."""
        return sum(len(members) for members, _ in self._parts) == len(self._plan.members)

    def train(self, session: Session, packed: bytes) -> None:
        """Train all members, or as many as Ctrl-C leaves the time for.

        Args:
            session: the cluster.
            packed: the task.
        """
        job, is_uneven = self._job, session.is_uneven
        self._session = session
        first = float(self._plan.lr[0].min()), self._plan.seeds[0]
        self._asked = session.share(packed), job.execution, job.dtype, *first, is_uneven  # of each worker, at first
        self._shares = Shares(
            self._plan.seeds,
            job.cluster.max_restarts,
            is_even=self._rungs is not None or not is_uneven,
            # Others may wait for all of a shard that is lost; and what is kept is kept of all of it.
            is_whole=self._rungs is not None or self._keeping is not None,
            begun=() if self._keeping is None else self._keeping.begun,
            done=[i for members, _ in self._parts for i in members],
        )
        self._room = session.num_devices
        self._looked_at = self._moved_at = self._first_at = time.monotonic()
        total = self._plan.num_steps * len(self._plan.members)
        try:
            with Bar(total=total, unit=" steps", unit_scale=True, disable=job.execution.hides_progress) as bar:
                try:
                    while self._shares.num_waiting or self._shares.running:
                        self._work(bar)
                except KeyboardInterrupt:
                    self._wind_up()
        finally:
            for worker in list(self._hands):
                self._let_go(worker)

    def _work(self, bar: Any) -> None:
        """Hear what there is to hear, and do what follows from it."""
        interrupts.check()
        self._heed_signals()
        self._hire()
        self._hear(timeout_s=1.0)
        self._deal()
        self._decide()
        self._show(bar)

    def _heed_signals(self) -> None:
        """Have all written down where it stands, or leave, if a signal asks for it."""
        if self._keeping is None:
            return
        if self._keeping.signals.is_leaving:
            self._wind_up()
            self._keeping.signals.leave()
        if self._keeping.signals.take_writing():
            for worker in self._shares.running:
                self._hands[worker].actor.write.remote()

    def _hire(self) -> None:
        """Ask for as many workers as there is room and use for; send away those that have nothing to wait for."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_S:
            self._room, self._looked_at = self._session.num_devices, now
        num_waiting, busy = self._shares.num_waiting, self._shares.running
        for _ in range(min(self._room, len(busy) + num_waiting) - len(self._hands)):
            actor = self._session.hire()
            self._hands[self._num_hired] = _Hand(actor, actor.greet.remote(*self._asked))
            self._num_hired += 1
        for worker in [worker for worker in self._hands if num_waiting == 0 and worker not in busy]:
            self._let_go(worker)

    def _let_go(self, worker: int) -> None:
        """Have a worker no longer."""
        hand = self._hands.pop(worker)
        self._session.dismiss(hand.actor, is_idle=hand.speed is not None and worker not in self._shares.running)

    def _hear(self, timeout_s: float) -> None:
        """Take the answers of workers, as they come."""
        answers = {hand.answer: worker for worker, hand in self._hands.items() if hand.answer is not None}
        for answer in self._session.wait(list(answers), timeout_s) if answers else ():
            worker = answers[answer]
            try:
                said = unpack(self._session.take(answer))
            except Gone as reason:
                self._lose(worker, reason)
                continue
            self._hands[worker].answer = None
            if isinstance(said, Greeting):
                self._greet(worker, said)
                continue
            for news in said:
                self._take(worker, news)
            if worker in self._shares.running:
                self._hands[worker].answer = self._hands[worker].actor.news.remote()

    def _greet(self, worker: int, greeting: Greeting) -> None:
        self._num_failed = 0
        if greeting.error is not None:
            greeting.error.add_note(f"The task was sent to {greeting.name}, and could not be made there.")
            raise greeting.error
        if all(hand.speed is None for hand in self._hands.values()):
            self._first_at = time.monotonic()
        self._hands[worker].speed = greeting.speed

    def _lose(self, worker: int, reason: Gone) -> None:
        """Go on without a worker."""
        if self._hands.pop(worker).speed is None:
            self._num_failed += 1
            if self._num_failed >= _MAX_FAILED and all(hand.speed is None for hand in self._hands.values()):
                raise RuntimeError(
                    f"No worker could be started on the cluster; the last one said: {reason} Is vecsweep installed on "
                    "all of its machines?"
                )
        self._looked_at = -np.inf
        shard = self._shares.lose(worker)
        if self._rungs is not None:
            self._rungs.leave(worker)
        if shard is not None and set(shard.members) <= set(self._shares.lost):
            if self._rungs is not None:
                self._rungs.end(shard.members, None)
            warn_of_loss(
                f"{counted(len(shard.members), 'member')} lost: the worker was gone {shard.num_restarts} times, the "
                f"last time because: {reason} The curves of these members are NaN: {list(shard.members)}."
            )

    def _deal(self) -> None:
        """Give members to workers that have none."""
        free = {
            worker: hand.speed
            for worker, hand in self._hands.items()
            if hand.speed is not None and worker not in self._shares.running
        }
        num_here = sum(hand.speed is not None for hand in self._hands.values())
        num_coming = max(0, min(len(self._hands), self._room) - num_here)  # a node that is gone has no room for them
        is_early = num_coming > 0 and not self._shares.is_begun
        if is_early and time.monotonic() - self._first_at < _PATIENCE_S:
            return
        for worker, shard in self._shares.deal(free, num_coming).items():
            self._begin(worker, shard)

    def _begin(self, worker: int, shard: Shard) -> None:
        hand = self._hands[worker]
        kept = self._rungs.kept if self._rungs else {}
        place = None if self._keeping is None else self._keeping.place_of(shard.members)
        hand.num_done, hand.num_alive = 0, len(shard.members)
        hand.actor.begin.remote(pack(order_of(self._job, shard.members, kept, place)))
        hand.answer = hand.actor.news.remote()
        self._used.add(worker)
        self._moved_at = time.monotonic()

    def _take(self, worker: int, news: News) -> None:
        """Take one piece of news of a worker that has a shard."""
        hand, shard = self._hands[worker], self._shares.running[worker]
        self._moved_at = time.monotonic()
        if isinstance(news, Losses):
            hand.num_done, hand.num_alive = news.start + news.num_steps, news.num_alive
            if self._retelling is not None:
                self._retelling.losses(shard, news)
        elif isinstance(news, Metrics):
            if self._retelling is not None:
                self._retelling.metrics(shard, news)
        elif isinstance(news, Left):
            if self._retelling is not None:
                self._retelling.ended(shard, news)
        elif isinstance(news, Asked):
            if self._rungs is not None and not self._is_over:
                self._rungs.tell(worker, shard.members, news.so_far)
        else:
            self._end(worker, news)

    def _end(self, worker: int, news: Ended) -> None:
        """Take what a shard has come to."""
        self._relay.pass_on(news.answer)
        if news.answer.error is not None:
            raise news.answer.error
        record: Record = news.answer.value
        if not record.is_complete and not self._is_over:  # it has made room for another
            self._shares.put_back(worker)
            return
        self._note(self._shares.done(worker).members, record)

    def _note(self, members: Sequence[int], record: Record) -> None:
        """Note what a shard did."""
        self._parts.append((members, record))
        if self._rungs is not None and not self._is_over:
            self._rungs.end(members, record)

    def _decide(self) -> None:
        """Say who goes on, where all have come to a rung; see that they can come to it."""
        if self._rungs is None:
            return
        for step, waiting in self._rungs.decide():
            if self._keeping is not None:
                self._keeping.note_decision(step, self._rungs.kept[step])
            for worker in waiting:
                own = places_of(self._rungs.kept[step], self._shares.running[worker].members)
                self._hands[worker].actor.decide.remote(step, own)
            self._moved_at = time.monotonic()
        busy = self._shares.running.keys()
        is_still = bool(busy) and busy <= self._rungs.waiting and self._shares.num_waiting > 0
        if is_still and time.monotonic() - self._moved_at > _STANDSTILL_S:
            worker = next(iter(busy))
            self._rungs.leave(worker)
            self._hands[worker].actor.stop.remote()
            self._moved_at = time.monotonic()

    def _show(self, bar: Any) -> None:
        """Show where all members stand."""
        busy = [(self._hands[worker], shard) for worker, shard in self._shares.running.items()]
        done = sum(len(members) for members, _ in self._parts) + len(self._shares.lost)
        ended = sum(int(((r.diverged_at < 0) & (r.stopped_at < 0)).sum()) for _, r in self._parts)
        alive = ended + self._shares.num_waiting + sum(hand.num_alive for hand, _ in busy)
        num_done = self._plan.num_steps * done + sum(hand.num_done * len(shard.members) for hand, shard in busy)
        words = [
            f"{alive} of {len(self._plan.members)} members alive",
            f"{counted(len(busy), 'shard')} on {counted(len(self._hands), 'worker')}",
        ]
        words += [f"{self._shares.num_restarts} restarted"] * (self._shares.num_restarts > 0)
        words += [f"{len(self._shares.lost)} lost"] * bool(self._shares.lost)
        bar.set_postfix_str(", ".join(words), refresh=False)
        bar.update(num_done - bar.n)  # members that begin anew take it back

    def _wind_up(self) -> None:
        """Let workers end where they are, and take what they have done; another Ctrl-C leaves it."""
        self._is_over = True
        until = time.monotonic() + (_WIND_UP_S if self._keeping is None else _WRITE_UP_S)
        try:
            for worker in self._shares.running:
                self._hands[worker].actor.stop.remote()
            while self._shares.running and time.monotonic() < until:
                self._hear(timeout_s=1.0)
        except KeyboardInterrupt:
            pass

    def joined(self) -> Record:
        """One record of all."""
        if self._parts and self.is_done and not self._used:
            return join_shards(self._job, self._parts)
        parts = [(members, own) for members, own in self._parts if own.is_complete or len(own.loss)]
        if not parts:
            if self._is_over:
                return Record.empty(len(self._plan.members))
            raise RuntimeError(
                f"All members were lost: each worker was gone {self._job.cluster.max_restarts + 1} times, as the "
                "warnings say. Look at the memory of the machines first."
            )
        return join_shards(self._job, parts, sorted(self._shares.lost), len(self._used), self._shares.num_restarts)
