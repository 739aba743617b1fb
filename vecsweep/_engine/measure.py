"""Losses and metrics of members in eval mode and without gradients, all members of a chunk at once.

Values are averaged over batches by the number of samples in each, so that a smaller last batch counts right.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from vecsweep._engine.batches import batch_size, hand_out, member_dims, move, own_loader
from vecsweep._engine.contract import Chunk
from vecsweep._engine.ensemble import Ensemble
from vecsweep._engine.learner import Learner
from vecsweep._engine.objective import Objective
from vecsweep._engine.probe import attributes_restored
from vecsweep._engine.rng import Streams
from vecsweep._types import Batch, FloatArray
from vecsweep.kernels.rules import MemberRules
from vecsweep.task import Task


def measure_at_once(
    objective: Objective,
    ensemble: Ensemble,
    batch: Batch,
    seed_index: Tensor | None,  # [member], a member's place on the batch's seed axis; None where it has none
) -> Tensor:
    """Measure all members of an ensemble in one pass: `[metric, member]`; nothing changes."""
    shared = {name: b.clone() for name, b in ensemble.buffers.items() if name not in ensemble.member_buffers}
    own = {name: b.clone() for name, b in ensemble.buffers.items() if name in ensemble.member_buffers}

    def member(parameters: dict[str, Tensor], own: dict[str, Tensor], batch: Batch) -> Tensor:
        with MemberRules([], []):
            return objective.measure(parameters | shared | own, batch)

    if seed_index is not None:
        batch = hand_out(batch, seed_index)
    mapped = vmap(member, in_dims=(0, 0, None if seed_index is None else member_dims(batch)), out_dims=1)
    with _undisturbed(objective):
        return mapped(ensemble.parameters, own, batch)


def measure_one(
    learner: Learner, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch
) -> Tensor:
    """Measure one member by an ordinary pass: `[metric]`; nothing changes.

    Args:
        learner: a pattern of the member.
        parameters: the member's, by name.
        buffers: likewise.
        batch: one batch.
    """
    objective = learner.objective
    tensors = dict(parameters) | {name: buffer.clone() for name, buffer in buffers.items()}
    with _undisturbed(objective):
        return objective.measure(tensors, batch)


@contextmanager
def _undisturbed(objective: Objective) -> Iterator[None]:
    """Evaluate, and put back what modules keep in their attributes: the model, and metrics that are modules."""
    with ExitStack() as stack:
        stack.enter_context(objective.evaluating())
        for module in (objective.model, *objective.metric_modules):
            stack.enter_context(attributes_restored(module))
        yield


class Evaluator:
    """Measure members on the validation batches, and, where asked, on one pass over the training batches.

    Args:
        task: whose batches and metrics.
        learners: one for each seed.
        streams: the random streams of the run.
        device: where members train.
        dtype: what floating-point tensors of batches are cast to; None leaves them alone.
        has_train_metrics: whether to measure the metrics on the training batches, too.

    Raises:
        ValueError: there are no validation batches, or a metric is not a scalar.
        TypeError: a metric is not a number.
    """

    def __init__(
        self,
        task: Task,
        learners: Mapping[int, Learner],
        streams: Streams,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        has_train_metrics: bool,
    ) -> None:
        self._task = replace(task, val_batches=own_loader(task.val_batches))
        self._seeds = list(learners)
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._has_train_metrics = has_train_metrics
        self._check(learners[self._seeds[0]])

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured."""
        names: tuple[str, ...] = ()
        if self._task.val_batches is not None:
            names += ("val_loss", *(f"val_{name}" for name in self._task.metrics))
        if self._has_train_metrics:
            names += tuple(f"train_{name}" for name in self._task.metrics)
        return names

    def __call__(self, chunks: Sequence[Chunk], seeds: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Measure the members of each chunk: `[metric, member]`, in the order of `names`.

        Args:
            chunks: of members.
            seeds: of the members of each.
        """
        parts = []
        if self._task.val_batches is not None:
            parts.append(self._average(self._validation(), chunks, seeds))
        if self._has_train_metrics:
            parts.append([rows[1:] for rows in self._average(self._training(), chunks, seeds)])
        return [torch.cat(of_chunk).cpu().numpy() for of_chunk in zip(*parts, strict=True)]

    def _average(
        self, batches: Iterator[dict[int, tuple[Batch, int]]], chunks: Sequence[Chunk], seeds: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Average over batches, by how many samples each holds for a member's seed."""
        totals: list[Tensor | float] = [0.0] * len(chunks)
        num_samples = dict.fromkeys(self._seeds, 0)
        places = {seed: place for place, seed in enumerate(self._seeds)}
        indices = [torch.tensor(list(map(places.__getitem__, own)), device=self._device) for own in seeds]
        for of_seeds in batches:
            own_batches = {seed: batch for seed, (batch, _) in of_seeds.items()}
            sizes = self._by_seed({seed: size for seed, (_, size) in of_seeds.items()})
            for k, (chunk, index) in enumerate(zip(chunks, indices, strict=True)):
                weights = sizes[index]
                # A seed whose batches have run out has a weight of 0 there, which NaN must not survive.
                totals[k] = totals[k] + torch.where(weights > 0, weights * chunk.measure(own_batches), 0.0)
            for seed, (_, size) in of_seeds.items():
                num_samples[seed] += size
        if not all(num_samples.values()):
            raise ValueError("The batches to evaluate on ran out; they yielded nothing when they were read again.")
        counts = self._by_seed(num_samples)
        return [torch.as_tensor(total) / counts[index] for total, index in zip(totals, indices, strict=True)]

    def _by_seed(self, sizes: Mapping[int, int]) -> Tensor:
        """Put a number of samples for each seed on the device: `[seed]`, in their order."""
        return torch.tensor([sizes[seed] for seed in self._seeds], dtype=torch.float64, device=self._device)

    def _validation(self) -> Iterator[dict[int, tuple[Batch, int]]]:
        """The validation batches, which all seeds have in common."""
        self._streams.restart("validation", self._seeds[0])
        source = self._task.iterate_validation()
        while True:
            self._streams.use("validation", self._seeds[0])
            try:
                batch = next(source)
            except StopIteration:
                return
            batch = move(batch, self._device, self._dtype)
            yield dict.fromkeys(self._seeds, (batch, batch_size(batch)))

    def _training(self) -> Iterator[dict[int, tuple[Batch, int]]]:
        """One pass over each seed's training batches, always in an order of its own; training goes on as without it."""
        sources = {}
        for seed in self._seeds:
            self._streams.restart("train metrics", seed)
            task = replace(self._task, batches=own_loader(self._task.batches))
            sources[seed] = task.iterate(seed)
        latest: dict[int, tuple[Batch, int]] = {}
        while sources:
            for seed in list(sources):
                self._streams.use("train metrics", seed)
                batch = next(sources[seed], None)
                if batch is None:
                    del sources[seed]
                    if seed in latest:
                        latest[seed] = (latest[seed][0], 0)
                else:
                    batch = move(batch, self._device, self._dtype)
                    latest[seed] = (batch, batch_size(batch))
            if sources:
                yield dict(latest)

    def _check(self, learner: Learner) -> None:
        """See that there is something to measure, by an ordinary pass over one batch."""
        source = self._training() if self._task.val_batches is None else self._validation()
        first = next(source, None)
        if first is None:
            raise ValueError(
                "`val_batches` must yield at least one batch; got none. Look at the length of the validation set."
            )
        batch, _ = next(iter(first.values()))
        self._task.check_batch(batch)
        measure_one(learner, learner.parameters, dict(learner.model.named_buffers()), batch)
