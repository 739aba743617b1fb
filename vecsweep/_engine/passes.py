"""What members are evaluated on: one pass over the validation batches, or over those of training, by seed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.batches import move
from vecsweep._engine.data.loaders import END, next_batch, opened
from vecsweep._engine.data.sources import is_fresh, own_loader
from vecsweep._engine.data.weights import weight_of
from vecsweep._engine.members.learner import Learner
from vecsweep._types import Batch, Batches
from vecsweep.task import Task


class Weighed(NamedTuple):
    """A batch, and how much it counts in a mean: a float64 scalar on the device."""

    batch: Batch
    weight: Tensor


class Passes:
    """Reads, for each seed, what its members are evaluated on.

    Args:
        task: whose batches.
        learners: one for each seed.
        streams: the random streams of the run.
        device: where members train.
        dtype: what floating-point tensors of batches are cast to; None leaves them alone.
    """

    def __init__(
        self,
        task: Task,
        learners: Mapping[int, Learner],
        streams: Streams,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self._task = task
        self._learners = learners
        self._seeds = list(learners)
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._validated_on = own_loader(task.val_batches)

    def validation(self) -> Iterator[dict[int, Weighed]]:
        """The validation batches, which all seeds have in common if the task does not give them by seed."""
        assert self._task.val_batches is not None
        if self._task.validates_by_seed:
            yield from self._by_seed("validation", self._task.open_validation, self._task.val_batches)
            return
        first = self._seeds[0]
        self._streams.restart("validation", first)
        source = opened(iter(self._task.open_validation(first, self._validated_on)))
        while True:
            self._streams.use("validation", first)
            if (batch := next_batch(source)) is END:
                return
            yield dict.fromkeys(self._seeds, self._weigh(batch, self._task.val_batches, first))

    def training(self) -> Iterator[dict[int, Weighed]]:
        """One pass over each seed's training batches, always in an order of its own; training goes on as without it."""
        batches = self._task.batches
        return self._by_seed("train metrics", lambda seed: self._task.iterate(seed, own_loader(batches)), batches)

    def _by_seed(
        self, stream: str, open_source: Callable[[int], Iterable[Batch]], source: Batches
    ) -> Iterator[dict[int, Weighed]]:
        """One pass over what each seed has of its own, side by side; who has come to an end counts no more.

        Args:
            stream: from which the seeds draw.
            open_source: returns what a seed reads.
            source: of all of it.
        """
        sources = {}
        for seed in self._seeds:
            self._streams.restart(stream, seed)
            sources[seed] = opened(iter(open_source(seed)))
        latest: dict[int, Weighed] = {}
        while sources:
            for seed in list(sources):
                self._streams.use(stream, seed)
                if (batch := next_batch(sources[seed])) is not END:
                    latest[seed] = self._weigh(batch, source, seed)
                    continue
                if seed not in latest:
                    raise ValueError(
                        f"There must be at least one batch to evaluate on; got none for seed {seed}. Look at what the "
                        "function returns that gives batches by seed, or by fold."
                    )
                del sources[seed]
                latest[seed] = latest[seed]._replace(weight=torch.zeros_like(latest[seed].weight))
            if sources:
                yield dict(latest)

    def _weigh(self, batch: Batch, source: Batches, seed: int) -> Weighed:
        """Take a batch to the members, and say how much it counts."""
        learner = self._learners[seed]
        moved = move(batch, self._device, self._dtype, is_fresh=is_fresh(source))
        weight = weight_of(learner.task, learner.model, moved)
        return Weighed(moved, weight.to(self._device, non_blocking=True))  # a number, which is copied at once
