"""What shards tell as they go, passed on to an observer of all members: each step once, however often it ran."""

from collections.abc import Sequence

import numpy as np

from vecsweep._engine.keeping.record import Observer, Part, Record
from vecsweep._types import FloatArray, IntArray
from vecsweep.cluster.news import Left, Losses, Metrics
from vecsweep.cluster.shares import Shard
from vecsweep.plan import Plan


class Retelling:
    """An observer's side of a cluster.

    Args:
        observer: of all members.
        plan: theirs.
    """

    def __init__(self, observer: Observer, plan: Plan) -> None:
        self._observer = observer
        self._plan = plan
        self._losses_of = np.zeros(len(plan.members), dtype=np.int64)  # up to which step the losses were told
        self._metrics_of = np.zeros(len(plan.members), dtype=np.int64)
        self._ended: set[int] = set()

    def past(self, shard: Shard, record: Record, evaluated_at: Sequence[int]) -> None:
        """Tell what a shard did while another driver was there."""
        self.losses(shard, Losses(0, len(record.loss), 0, record.loss, record.hyper))
        for row in range(len(next(iter(record.metrics.values()), ()))):
            values = {name: own[row] for name, own in record.metrics.items()}
            self.metrics(shard, Metrics(evaluated_at[row], values))
        for steps, has_diverged in ((record.diverged_at, True), (record.stopped_at, False)):
            for k in np.flatnonzero(steps >= 0).tolist():
                self.ended(shard, Left(k, int(steps[k]), has_diverged))

    def losses(self, shard: Shard, news: Losses) -> None:
        """Pass losses on, but for what was told before the members began anew."""
        if news.loss is None or news.hyper is None:
            return
        members = list(shard.members)
        steps = np.arange(news.start, news.start + news.num_steps)[:, None]
        loss = np.where(steps < self._losses_of[members], np.nan, news.loss)
        if _note(self._losses_of, members, loss, news.start + news.num_steps):
            Part(self._observer, members, self._plan).losses(news.start, loss, news.hyper)

    def metrics(self, shard: Shard, news: Metrics) -> None:
        """Likewise metrics."""
        if not news.values:
            return
        members = list(shard.members)
        is_old = news.num_done <= self._metrics_of[members]
        values = {name: np.where(is_old, np.nan, own) for name, own in news.values.items()}
        if _note(self._metrics_of, members, np.stack(list(values.values())), news.num_done):
            Part(self._observer, members, self._plan).metrics(news.num_done, values)

    def ended(self, shard: Shard, news: Left) -> None:
        """Likewise that a member has come to its end."""
        member = shard.members[news.member]
        if member not in self._ended:
            self._ended.add(member)
            self._observer.ended(member, news.step, has_diverged=news.has_diverged)


def _note(told: IntArray, members: list[int], values: FloatArray, num_done: int) -> bool:
    """Note up to which step members were told of, `[..., member]`; False if there is nothing new."""
    is_new = ~np.isnan(values).all(axis=0)
    told[members] = np.where(is_new, np.maximum(told[members], num_done), told[members])
    return bool(is_new.any())
