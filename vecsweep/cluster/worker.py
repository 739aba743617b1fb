"""Worker: what trains shards in a process of its own, on one device, and tells of it. Nothing here knows of Ray.

It is asked for news, and waits with the answer until there is some. What is told is small: losses and metrics as they
come, if somebody wants them; the weights only at the end.
"""

import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from vecsweep._engine.keeping.record import Record, Start, here
from vecsweep._engine.run import learners_of, plain_loop, train
from vecsweep._engine.ways.workers import Answer, noting, sendable
from vecsweep._errors import FallbackWarning
from vecsweep._types import FloatArray, Hyper
from vecsweep.checkpoint.signals import Signals
from vecsweep.checkpoint.stored import forget
from vecsweep.cluster.keeping import Place, ShardKeeper
from vecsweep.cluster.news import Asked, Ended, Greeting, Left, Losses, Metrics, News, Order
from vecsweep.cluster.sending import pack, unpack
from vecsweep.evaluation import SoFar
from vecsweep.execution import Execution
from vecsweep.task import Task

_LONGEST_S = 5.0  # that news are waited for
_SHORTEST_S = 0.25  # between two answers, however much there is to tell
_TIMED_STEPS = 6


class Worker:
    """One device of a cluster.

    Args:
        kind: of the device.
        paths: where the other side finds its modules, which may be here, too.
    """

    def __init__(self, kind: str, paths: Sequence[str] = ()) -> None:
        self._device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
        sys.path += [path for path in paths if path not in sys.path]
        self._news: list[News] = []
        self._told_at = 0.0
        self._changed = threading.Condition()
        self._kept: dict[int, Collection[int]] = {}
        self._is_stopped = False
        self._is_watched = False
        self._signals = Signals()  # of the driver
        self._keepers: list[ShardKeeper] = []

    def greet(
        self, task: bytes, execution: Execution, dtype: torch.dtype | None, lr: float, seed: int, is_timed: bool
    ) -> bytes:
        """Make the task of a run, and time a few steps of it if that is asked for.

        Args:
            task: what is trained, packed.
            execution: how.
            dtype: of parameters, buffers and batches; None leaves them as they are.
            lr: to time it with.
            seed: likewise.
            is_timed: whether it is to be timed.
        """
        name = f"{socket.gethostname()}, process {os.getpid()}"
        self._execution = replace(execution, cluster=None, device=self._device)
        self._dtype = dtype
        self._signals = Signals()
        try:
            self._task: Task = pickle.loads(task)
            speed = self._time(lr, seed) if is_timed and not self._task.is_one_pass else 1.0
        except Exception as error:  # of the user's own code, say
            return pack(Greeting(name, 1.0, sendable(error)))
        return pack(Greeting(name, speed))

    def begin(self, order: bytes) -> None:
        """Begin to train a shard, and return."""
        self._is_stopped = False
        threading.Thread(target=self._train, args=(unpack(order),), daemon=True).start()

    def news(self) -> bytes:
        """Wait until there is something to tell; empty where there is nothing for long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._news), _LONGEST_S)
            pause = self._told_at + _SHORTEST_S - time.monotonic()
            self._changed.wait_for(lambda: any(isinstance(own, Asked | Ended) for own in self._news), max(0.0, pause))
            news, self._news = self._news, []
            self._told_at = time.monotonic()
        try:
            return pack(news)
        except Exception as error:  # what passes have kept in Python may be such that it cannot be sent
            return pack([_without_what_was_kept(own, error) for own in news])

    def decide(self, num_done: int, kept: Collection[int]) -> None:
        """Say who goes on after a rung."""
        with self._changed:
            self._kept[num_done] = kept
            self._changed.notify_all()

    def write(self) -> None:
        """Write down where the shard stands, if it is kept."""
        self._signals.ask_writing()

    def stop(self) -> None:
        """End the run where it stands, as Ctrl-C does; what it did is told, and kept if the shard is."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take losses from the training loop."""
        num_alive = int((~np.isnan(loss[-1])).sum())
        told = loss.copy() if self._is_watched else None
        own = {name: values.copy() for name, values in hyper.items()} if self._is_watched else None
        self._tell(Losses(start, len(loss), num_alive, told, own))

    def metrics(self, num_done: int, values: dict[str, FloatArray]) -> None:
        """Take metrics from the training loop."""
        self._tell(Metrics(num_done, {name: own.copy() for name, own in values.items()} if self._is_watched else {}))

    def ended(self, member: int, step: int, *, has_diverged: bool) -> None:
        """Take from the training loop that a member has come to its end."""
        if self._is_watched:
            self._tell(Left(member, step, has_diverged))

    def _tell(self, news: News) -> None:
        with self._changed:
            self._news.append(news)
            self._changed.notify_all()
            if self._is_stopped and not self._keepers and not isinstance(news, Ended):
                raise KeyboardInterrupt  # as which the training loop takes it; a keeper raises it where all is kept

    def _ask(self, so_far: SoFar) -> Collection[int]:
        """Wait until it is known who goes on."""
        if so_far.num_done not in self._kept:
            self._tell(Asked(so_far))
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or so_far.num_done in self._kept)
            if self._is_stopped:
                raise KeyboardInterrupt
            return self._kept[so_far.num_done]

    def _train(self, order: Order) -> None:
        """Train a shard to its end."""
        self._kept, self._is_watched = dict(order.kept), order.is_watched
        evaluation = order.evaluation
        if evaluation is not None and evaluation.pruning is not None:
            evaluation = replace(evaluation, pruning=replace(evaluation.pruning, keep=self._ask))
        self._keepers = []
        record, error = None, None
        with noting() as noted:
            try:
                if order.place is not None:
                    order.place.check(socket.gethostname())
                record = train(
                    self._task,
                    order.plan,
                    self._execution,
                    dtype=self._dtype,
                    keeps_states=order.keeps_states,
                    evaluation=evaluation,
                    start=self._start(order),
                    observer=self,
                    keepers=None if order.place is None else partial(self._keeper, order.place),
                )
                for keeper in self._keepers:
                    keeper.close()
                record = _to_be_sent(record, order)
            except KeyboardInterrupt:  # before the first step
                record = Record.empty(len(order.plan.members))
            except Exception as raised:  # of the user's own code, say
                error = sendable(raised)
        forget()
        self._tell(Ended(Answer(record, error, noted)))

    def _keeper(self, place: Place) -> ShardKeeper:
        """Who keeps the next members of the shard that train at the same time."""
        self._keepers.append(place.keeper(len(self._keepers), self._signals, lambda: self._is_stopped))
        return self._keepers[-1]

    def _start(self, order: Order) -> Start | None:
        if order.start is None or order.states is None:
            return None
        learners = learners_of(self._task, order.plan.seeds, self._execution, self._dtype)
        states = unpack(order.states, self._execution.place)
        device = next(next(iter(learners.values())).model.parameters()).device
        return replace(order.start, states=[own.on(device) for own in here(states)], learners=learners)

    def _time(self, lr: float, seed: int) -> float:
        """Steps of one model in a second, by the loop that people write."""
        with plain_loop(self._task, self._execution, self._dtype) as loop:
            loop.train(lr, seed, 1)
            started = time.perf_counter()
            loop.train(lr, seed, _TIMED_STEPS)
            return _TIMED_STEPS / max(time.perf_counter() - started, 1e-9)


def _to_be_sent(record: Record, order: Order) -> Record:
    """What the other side needs of a record: it has the task, and fetches states from where they are kept."""
    record = replace(record, learners={})
    if order.place is None or not record.is_complete:
        return record if record.is_complete else replace(record, states=[])
    kept = order.place.record(order.plan, keeps_states=order.keeps_states)
    return record if kept is None else replace(record, states=kept[0].states)


def _without_what_was_kept(news: News, error: Exception) -> News:
    """Leave out of a record what passes have kept in Python, where it cannot be sent."""
    if not isinstance(news, Ended) or news.answer.value is None:
        return news
    record: Record = news.answer.value
    text = (
        "What passes have kept in Python cannot be sent by the process that trained the members, so that their models "
        f"are without it: {error}"
    )
    record = replace(
        record,
        states=[replace(state, kept={}) for state in here(record.states)],
        ends={seed: replace(end, outside={}) for seed, end in record.ends.items()},
    )
    return Ended(news.answer._replace(value=record, warnings=[*news.answer.warnings, FallbackWarning(text)]))
