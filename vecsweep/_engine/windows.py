"""Windows: the batches of the next steps, seed by seed, and what reading them changes outside the model.

Not here: batches themselves, how they are copied and moved (`batches.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Changes, Watch
from vecsweep._engine.data.batches import BatchStream, Position, size_bytes
from vecsweep._engine.data.fingerprint import Fingerprint
from vecsweep._engine.data.own_state import OwnState
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.keeping.record import End
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.ways.contract import Window
from vecsweep._types import Batch
from vecsweep.execution import Execution
from vecsweep.stumbles import look_at_batch
from vecsweep.task import Task

_WINDOW_STEPS = 16
_WINDOW_BYTES = 64 * 2**20  # of buffered batches
_WINDOW_S = 2.0  # on a CPU, about: Ctrl-C waits for its end


class Place(NamedTuple):
    """Where a seed stands in its batches: the position, what reading them has changed, and the last that was taken."""

    position: Position
    read: Changes
    last: Batch | None


class Windows:
    """What the seeds of a run read.

    Args:
        task: whose batches.
        learners: by seed.
        execution: how many batches a step takes.
        streams: the random streams that batches draw from.
        device: that they are moved to.
        dtype: of their numbers; None leaves them as they are.
        ends: where an earlier run stood, by seed; none for the beginning.
        last: what is known of the batch that was taken last there.
        mover: what reading batches changes outside the model, in words, if that is known.
        has_new_workers: whether each epoch has new worker processes, so that it can be begun anew in another process.

    Attributes:
        size: steps of a window, at most.
        moved: by seed, what reading has changed outside the model (an epoch, say, that the loss reads), as the steps
            of the window find it.
        mover: the same in words; None if there is nothing.
    """

    def __init__(
        self,
        task: Task,
        learners: Mapping[int, Learner],
        execution: Execution,
        streams: Streams,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        ends: Mapping[int, End],
        last: Mapping[int, Fingerprint],
        mover: str | None,
        has_new_workers: bool,
    ) -> None:
        seed, pattern = next(iter(learners.items()))
        self._outside = Watch.outside(pattern.task, pattern.model, has_numbers=False)
        own = OwnState(task.batches, self._outside.holders)
        self.streams = {
            own_seed: BatchStream(
                task,
                own_seed,
                streams,
                device,
                dtype,
                ends[own_seed].batches if ends else None,
                last.get(own_seed),
                has_new_workers=has_new_workers,
                hides_progress=execution.hides_progress,
                own=own,
            )
            for own_seed in learners
        }
        self._num_accumulated = execution.accumulation_steps
        self._last: dict[int, Batch] = {}  # by seed, the batch that was taken last
        self._read: dict[int, Changes] = {own: ends[own].outside if ends else {} for own in learners}  # as left behind
        self.moved = dict(self._read)
        self.mover = mover
        self._places: dict[int, Place] = {}  # where seeds stood before they took batches that are not trained yet
        self._prefetched: Window | None = None
        with self._reading(seed):
            self.first = self.streams[seed].peek()
        task.check_batch(unpack(self.first))
        look_at_batch(task, unpack(self.first))
        step_bytes = max(1, size_bytes(self.first) * self._num_accumulated)
        self.size = 1 if self.mover else max(1, min(_WINDOW_STEPS, _WINDOW_BYTES // step_bytes))

    def limit(self, step_s: float) -> None:
        """Let a window take no longer than somebody waits for its end.

        Args:
            step_s: that a step of all members takes, about.
        """
        self.size = min(self.size, max(1, int(_WINDOW_S / step_s)))

    def next(self, seeds: Iterable[int], num_steps: int) -> Window:
        """Take the batches of the next steps, for each of some seeds, if they are not there yet."""
        window, self._prefetched = self._prefetched, None
        return window or self._take(seeds, num_steps)

    def prefetch(self, seeds: Iterable[int], num_steps: int) -> Window:
        """Take them now."""
        self._places = {}
        self._prefetched = self._take(seeds, num_steps)
        return self._prefetched

    def note_trained(self) -> None:
        """Take it that the window is trained that was given last."""
        if self._prefetched is None:
            self._places = {}

    def place_of(self, seed: int) -> Place:
        """Where a seed stands in its batches, those that were trained."""
        return self._places.get(seed) or Place(self.streams[seed].position, self._read[seed], self._last.get(seed))

    def _take(self, seeds: Iterable[int], num_steps: int) -> Window:
        num_steps = min(self.size, num_steps)
        self._places = {seed: self.place_of(seed) for seed in self.streams}
        # One seed after another: each swap of random streams takes longer than a small batch.
        taken: dict[int, list[tuple[Batch, ...]]] = {seed: [] for seed in seeds}
        for seed, own in taken.items():
            while len(own) < num_steps:
                before = self._read[seed]
                with nullcontext() if self.streams[seed].is_quiet else self._reading(seed):
                    own.append(tuple(self.streams[seed].take() for _ in range(self._num_accumulated)))
                if len(own) == 1:
                    self.moved[seed] = self._read[seed]
                elif self._read[seed] != before:  # the steps before this one are trained as things were
                    num_steps = len(own) - 1
        for seed, own in taken.items():
            self.streams[seed].put_back([batch for step_batches in own[num_steps:] for batch in step_batches])
            self._last[seed] = own[num_steps - 1][-1]
        return [{seed: own[t] for seed, own in taken.items()} for t in range(num_steps)]

    @contextmanager
    def _reading(self, seed: int) -> Iterator[None]:
        """Read batches of a seed as if it were the only one; note what that changes outside the model."""
        self._outside.put(self._read[seed])
        try:
            yield
        finally:
            self._read[seed] = self._outside.plain_changes()
            self._outside.set_back(self._read[seed])
        if self._read[seed] and self.mover is None:
            name = self._outside.names(self._read[seed])[0]
            self.mover = f"reading batches changes {name}, on which the loss may depend"
            self.size = 1
