"""What members are evaluated on: one pass over the validation batches, or over those of training, by seed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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


@dataclass
class Passes:
    """Reads, for each seed, what its members are evaluated on.

    Attributes:
        task: whose batches.
        learners: one for each seed.
        streams: the random streams of the run.
        device: where members train.
        dtype: what floating-point tensors of batches are cast to; None leaves them alone.
    """

    task: Task
    learners: Mapping[int, Learner]
    streams: Streams
    device: torch.device
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        self._validated_on = own_loader(self.task.val_batches)  # its workers may outlive a pass

    @property
    def seeds(self) -> list[int]:
        """Whose."""
        return list(self.learners)

    def validation(self) -> Iterator[dict[int, Weighed]]:
        """The validation batches, which all seeds have in common if the task does not give them by seed."""
        assert self.task.val_batches is not None
        if self.task.validates_by_seed:
            yield from self._by_seed("validation", self.task.open_validation, self.task.val_batches)
            return
        first = self.seeds[0]
        self.streams.restart("validation", first)
        source = opened(iter(self.task.open_validation(first, self._validated_on)))
        while True:
            self.streams.use("validation", first)
            if (batch := next_batch(source)) is END:
                return
            yield dict.fromkeys(self.seeds, self._weigh(batch, self.task.val_batches, first))

    def training(self) -> Iterator[dict[int, Weighed]]:
        """One pass over each seed's training batches, always in an order of its own; training goes on as without it."""
        batches = self.task.batches
        return self._by_seed("train metrics", lambda seed: self.task.iterate(seed, own_loader(batches)), batches)

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
        for seed in self.seeds:
            self.streams.restart(stream, seed)
            sources[seed] = opened(iter(open_source(seed)))
        latest: dict[int, Weighed] = {}
        while sources:
            for seed in list(sources):
                self.streams.use(stream, seed)
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
        learner = self.learners[seed]
        moved = move(batch, self.device, self.dtype, is_fresh=is_fresh(source))
        weight = weight_of(learner.task, learner.model, moved)
        return Weighed(moved, weight.to(self.device, non_blocking=True))  # a number, which is copied at once
