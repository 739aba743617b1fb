"""The driver's side of a run on a cluster: workers are hired, shards dealt out, news heard, records joined.

Of the members it sees losses and metrics, and no weights before the end.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vecsweep._engine.record import Observer, Part, Record, Start
from vecsweep._errors import warn_of_fallback, warn_of_loss
from vecsweep._types import FloatArray, IntArray
from vecsweep._words import counted
from vecsweep.cluster.joining import join_shards, with_weights
from vecsweep.cluster.rungs import Rungs
from vecsweep.cluster.sending import pack, unpack
from vecsweep.cluster.session import Gone, Session
from vecsweep.cluster.shares import Shard, Shares
from vecsweep.cluster.worker import Asked, Ended, Greeting, Left, Losses, Metrics, News, Order
from vecsweep.execution import Execution
from vecsweep.plan import Evaluation, Plan, SoFar
from vecsweep.task import Task

_PATIENCE_S = 30.0  # with workers that are slower to come than the first, before members are dealt out without them
_STANDSTILL_S = 10.0  # in which all that have members wait for others that have no place, until one makes room
_LOOK_S = 2.0  # between looks at how many devices there are
_WIND_UP_S = 60.0  # for workers to tell what they have done when Ctrl-C ends the run
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
        session: the cluster.
        packed: the task.
        plan: of all members.
        execution: how.
        dtype: of parameters, buffers and batches; None leaves them as they are.
        keeps_states: whether to return the members' states.
        evaluation: when members are evaluated; None for never.
        start: where an earlier run ended; None for the beginning.
        observer: who is told of losses and metrics as they come.
    """

    def __init__(
        self,
        session: Session,
        packed: bytes,
        plan: Plan,
        execution: Execution,
        dtype: torch.dtype | None,
        keeps_states: bool,
        evaluation: Evaluation | None,
        start: Start | None,
        observer: Observer | None,
    ) -> None:
        self._session = session
        self._task = session.share(packed)
        self._plan = plan
        self._execution = execution
        self._dtype = dtype
        self._keeps_states = keeps_states
        self._evaluation = evaluation
        self._start = start
        self._observer = observer
        has_rungs = evaluation is not None and evaluation.pruning is not None
        self._rungs = Rungs(plan, evaluation) if evaluation is not None and has_rungs else None
        # Where shards wait for each other, a part of one that is lost would keep the others from going on.
        self._shares = Shares(plan.seeds, session.max_restarts, is_whole=has_rungs)
        self._hands: dict[int, _Hand] = {}
        self._num_hired = 0
        self._num_failed = 0
        self._names: set[int] = set()  # of the workers that had a shard
        self._parts: list[tuple[Sequence[int], Record]] = []
        self._told = np.zeros((2, len(plan.members)), dtype=np.int64)  # steps of which losses, and metrics, were told
        self._left: set[int] = set()  # of whose end was told
        self._warned: set[str] = set()
        self._is_over = False
        self._room = session.num_devices
        self._looked_at = self._moved_at = self._first_at = time.monotonic()

    def train(self, task: Task) -> Record:
        """Train all members, or as many as Ctrl-C leaves the time for.

        Args:
            task: what is trained, as it is here.
        """
        total = self._plan.num_steps * len(self._plan.members)
        try:
            with tqdm(total=total, unit=" steps", unit_scale=True, disable=self._execution.hides_progress) as bar:
                try:
                    while not self._is_done:
                        self._work(bar)
                except KeyboardInterrupt:
                    self._wind_up()
        finally:
            for hand in self._hands.values():
                self._session.dismiss(hand.actor)
        return self._joined(task)

    @property
    def _is_done(self) -> bool:
        return self._shares.num_waiting == 0 and not self._shares.running

    def _work(self, bar: Any) -> None:
        """Hear what there is to hear, and do what follows from it."""
        self._hire()
        self._hear(timeout_s=1.0)
        self._deal()
        self._decide()
        self._show(bar)

    def _hire(self) -> None:
        """Ask for as many workers as there is room and use for; send away those that have nothing to wait for."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_S:
            self._room, self._looked_at = self._session.num_devices, now
        num_waiting, busy = self._shares.num_waiting, self._shares.running
        for _ in range(min(self._room, len(busy) + num_waiting) - len(self._hands)):
            actor = self._session.hire(self._task, self._execution, self._dtype)
            answer = actor.greet.remote(float(self._plan.lr[0].min()), self._plan.seeds[0], self._session.is_uneven)
            self._hands[self._num_hired] = _Hand(actor, answer)
            self._num_hired += 1
        for worker in [worker for worker in self._hands if num_waiting == 0 and worker not in busy]:
            self._session.dismiss(self._hands.pop(worker).actor)

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
            if self._num_failed >= _MAX_FAILED:
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
        num_coming = sum(hand.speed is None for hand in self._hands.values())
        is_early = num_coming > 0 and not self._shares.is_begun
        if is_early and time.monotonic() - self._first_at < _PATIENCE_S:
            return
        for worker, shard in self._shares.deal(free, num_coming).items():
            self._begin(worker, shard)

    def _begin(self, worker: int, shard: Shard) -> None:
        hand = self._hands[worker]
        evaluation = self._evaluation
        if evaluation is not None and evaluation.pruning is not None:  # whose function stays here
            evaluation = replace(evaluation, pruning=replace(evaluation.pruning, keep=_nobody))
        start, states = None, None
        if self._start is not None:
            own = self._start.select(shard.members)
            start, states = replace(own, states=[], learners={}), pack(own.states)
        places = {i: k for k, i in enumerate(shard.members)}
        order = Order(
            plan=self._plan.select(shard.members),
            keeps_states=self._keeps_states,
            evaluation=evaluation,
            states=states,
            start=start,
            is_watched=self._observer is not None,
            kept={step: _places(kept, places) for step, kept in self._rungs.kept.items()} if self._rungs else {},
        )
        hand.num_done, hand.num_alive = 0, len(shard.members)
        hand.actor.begin.remote(pack(order))
        hand.answer = hand.actor.news.remote()
        self._names.add(worker)
        self._moved_at = time.monotonic()

    def _take(self, worker: int, news: News) -> None:
        """Take one piece of news of a worker that has a shard."""
        hand, shard = self._hands[worker], self._shares.running[worker]
        self._moved_at = time.monotonic()
        if isinstance(news, Losses):
            hand.num_done, hand.num_alive = news.start + news.num_steps, news.num_alive
            self._show_losses(shard, news)
        elif isinstance(news, Metrics):
            self._show_metrics(shard, news)
        elif isinstance(news, Left):
            self._show_end(shard.members[news.member], news)
        elif isinstance(news, Asked):
            if self._rungs is not None and not self._is_over:
                self._rungs.tell(worker, shard.members, news.so_far)
        else:
            self._end(worker, news)

    def _end(self, worker: int, news: Ended) -> None:
        """Take what a shard has come to."""
        if news.answer.error is not None:
            raise news.answer.error
        for text in set(news.answer.warnings) - self._warned:
            self._warned.add(text)
            warn_of_fallback(text)
        record: Record = news.answer.value
        if not record.is_complete and not self._is_over:  # it has made room for another
            self._shares.put_back(worker)
            return
        shard = self._shares.done(worker)
        self._parts.append((shard.members, record))
        if self._rungs is not None and not self._is_over:
            self._rungs.end(shard.members, record)

    def _decide(self) -> None:
        """Say who goes on, where all have come to a rung; see that they can come to it."""
        if self._rungs is None:
            return
        for step, waiting in self._rungs.decide():
            for worker in waiting:
                places = {i: k for k, i in enumerate(self._shares.running[worker].members)}
                self._hands[worker].actor.decide.remote(step, _places(self._rungs.kept[step], places))
            self._moved_at = time.monotonic()
        busy = self._shares.running.keys()
        is_still = bool(busy) and busy <= self._rungs.waiting and self._shares.num_waiting > 0
        if is_still and time.monotonic() - self._moved_at > _STANDSTILL_S:
            worker = next(iter(busy))
            self._rungs.leave(worker)
            self._hands[worker].actor.stop.remote()
            self._moved_at = time.monotonic()

    def _show_losses(self, shard: Shard, news: Losses) -> None:
        """Pass losses on to the observer, but for what it was told before members began anew."""
        if self._observer is None or news.loss is None or news.hyper is None:
            return
        members = list(shard.members)
        steps = np.arange(news.start, news.start + news.num_steps)[:, None]
        loss = np.where(steps < self._told[0, members], np.nan, news.loss)
        if self._note_told(0, members, loss, news.start + news.num_steps):
            Part(self._observer, members, self._plan).losses(news.start, loss, news.hyper)

    def _show_metrics(self, shard: Shard, news: Metrics) -> None:
        """Likewise metrics."""
        if self._observer is None or not news.values:
            return
        members = list(shard.members)
        is_old = news.num_done <= self._told[1, members]
        values = {name: np.where(is_old, np.nan, own) for name, own in news.values.items()}
        if self._note_told(1, members, np.stack(list(values.values())), news.num_done):
            Part(self._observer, members, self._plan).metrics(news.num_done, values)

    def _show_end(self, member: int, news: Left) -> None:
        """Likewise that a member has come to its end, which one that began anew comes to again."""
        if self._observer is not None and member not in self._left:
            self._left.add(member)
            self._observer.ended(member, news.step, has_diverged=news.has_diverged)

    def _note_told(self, row: int, members: list[int], values: FloatArray, num_done: int) -> bool:
        """Note up to which step members were told of; False if there is nothing new."""
        is_new = ~np.isnan(values).all(axis=0)
        told: IntArray = self._told[row, members]
        self._told[row, members] = np.where(is_new, np.maximum(told, num_done), told)
        return bool(is_new.any())

    def _show(self, bar: Any) -> None:
        """Show where all members stand."""
        busy = [(self._hands[worker], shard) for worker, shard in self._shares.running.items()]
        done = sum(len(members) for members, _ in self._parts) + len(self._shares.lost)
        ended = sum(int(((r.diverged_at < 0) & (r.stopped_at < 0)).sum()) for _, r in self._parts)
        alive = ended + self._shares.num_waiting + sum(hand.num_alive for hand, _ in busy)
        bar.n = self._plan.num_steps * done + sum(hand.num_done * len(shard.members) for hand, shard in busy)
        words = [
            f"{alive} of {len(self._plan.members)} members alive",
            f"{counted(len(busy), 'shard')} on {counted(len(self._hands), 'worker')}",
        ]
        words += [f"{self._shares.num_restarts} restarted"] * (self._shares.num_restarts > 0)
        words += [f"{len(self._shares.lost)} lost"] * bool(self._shares.lost)
        bar.set_postfix_str(", ".join(words))

    def _wind_up(self) -> None:
        """Let workers end where they are, and take what they have done; another Ctrl-C leaves it."""
        self._is_over = True
        until = time.monotonic() + _WIND_UP_S
        try:
            for worker in self._shares.running:
                self._hands[worker].actor.stop.remote()
            while self._shares.running and time.monotonic() < until:
                self._hear(timeout_s=1.0)
        except KeyboardInterrupt:
            pass

    def _joined(self, task: Task) -> Record:
        """One record of all."""
        lost = sorted(self._shares.lost)
        parts = [part for part in self._parts if self._is_over is False or len(part[1].loss)]
        if not parts:
            if self._is_over:
                return Record.empty(len(self._plan.members))
            raise RuntimeError(
                f"All members were lost: each worker was gone {self._session.max_restarts + 1} times, as the warnings "
                "say. Look at the memory of the machines first."
            )
        record = join_shards(self._plan, parts, lost, len(self._names), self._shares.num_restarts)
        if not (record.is_complete and self._keeps_states):
            return record
        return with_weights(record, parts, lost, self._plan, task, self._execution, self._dtype, self._start)


def _places(kept: frozenset[int], places: dict[int, int]) -> list[int]:
    """Of the members that go on, those of a shard, by their places in it."""
    return [place for i, place in places.items() if i in kept]


def _nobody(so_far: SoFar) -> Sequence[int]:
    """Stands for who decides."""
    raise AssertionError("a worker asks the driver")
