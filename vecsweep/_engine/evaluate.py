"""Losses and metrics of members on the validation batches, and on the training batches where that is asked for.

Values are averaged over batches by the weight of each (`weights.py`), so that a smaller last batch counts right.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vecsweep import _interrupts as interrupts
from vecsweep._engine.data.batches import size_bytes
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.data.sources import check_validation_ends
from vecsweep._engine.graphs.capture import upload
from vecsweep._engine.members.measure import measure_one
from vecsweep._engine.members.reads import Reads, reads_of_callers, tell_of_callers
from vecsweep._engine.passes import Passes, Weighed
from vecsweep._engine.ways.contract import Chunk
from vecsweep._types import FloatArray
from vecsweep.execution import Execution

_AT_ONCE = 16  # batches
_BYTES_AT_ONCE = 64 * 2**20


class Evaluator:
    """Measure members on the validation batches, and, where asked, on one pass over the training batches.

    Args:
        passes: over the batches.
        execution: whether progress is shown.
        has_train_metrics: whether to measure the metrics on the training batches, too.

    Attributes:
        obstacle: why members cannot be evaluated at once, if the first pass shows a reason.

    Raises:
        ValueError: there are no validation batches, or no end of them, or a metric is not a scalar.
        TypeError: a metric is not a number.
    """

    def __init__(self, passes: Passes, execution: Execution, *, has_train_metrics: bool) -> None:
        self._passes = passes
        self._task = passes.task
        self._execution = execution
        self._has_train_metrics = has_train_metrics
        self.obstacle: str | None = None
        self._check()

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
        with ExitStack() as stack:
            for chunk in chunks:
                stack.enter_context(chunk.evaluating())
            if self._task.val_batches is not None:
                parts.append(self._average(self._passes.validation(), chunks, seeds))
            if self._has_train_metrics:
                parts.append([rows[1:] for rows in self._average(self._passes.training(), chunks, seeds)])
        together = torch.cat([torch.cat(of_chunk) for of_chunk in zip(*parts, strict=True)], dim=1).cpu().numpy()
        return np.split(together, np.cumsum([len(chunk) for chunk in chunks])[:-1], axis=1)

    def _average(
        self, batches: Iterator[dict[int, Weighed]], chunks: Sequence[Chunk], seeds: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Average over batches, by the weight of each for a member's seed."""
        all_seeds, device = self._passes.seeds, self._passes.device
        totals = [torch.zeros((), dtype=torch.float64, device=device)] * len(chunks)
        places = {seed: place for place, seed in enumerate(all_seeds)}
        indices = [upload(np.array(list(map(places.__getitem__, own))), device) for own in seeds]
        whole = torch.zeros(len(all_seeds), dtype=torch.float64, device=device)
        # What comes from the host for its turn measures several batches then.
        is_patient = len(chunks) > 1 and any(chunk.is_offloaded for chunk in chunks)
        while some := _next(batches, _AT_ONCE if is_patient else 1):
            weights = [torch.stack([of_seeds[seed].weight for seed in all_seeds]) for of_seeds in some]
            whole = functools.reduce(torch.add, weights, whole)
            for k, (chunk, index) in enumerate(zip(chunks, indices, strict=True)):
                for of_seeds, of_all in zip(some, weights, strict=True):
                    interrupts.check()
                    own = of_all[index]
                    measured = chunk.measure({seed: weighed.batch for seed, weighed in of_seeds.items()})
                    # A seed whose batches have run out has a weight of 0 there, which NaN must not survive.
                    totals[k] = totals[k] + torch.where(own > 0, own * measured, 0.0)
        if not bool((whole > 0).all()):
            raise ValueError(
                "The batches to evaluate on must hold something; they yielded nothing when they were read again, or "
                "have no weight: look at what `batch_weight` returns, and for targets that the loss ignores."
            )
        return [total / whole[index] for total, index in zip(totals, indices, strict=True)]

    def _check(self) -> None:
        """See that there is something to measure, by an ordinary pass over one batch, and an end of it."""
        source = self._passes.training() if self._task.val_batches is None else self._passes.validation()
        first = next(source, None)
        if first is None:
            raise ValueError(
                "`val_batches` must yield at least one batch; got none. Look at the length of the validation set."
            )
        seed = self._passes.seeds[0]
        batch, learner = first[seed].batch, self._passes.learners[seed]
        self._task.check_batch(unpack(batch))
        own: dict[str, Tensor] = {**learner.parameters, **dict(learner.model.named_buffers())}
        given = {name: tensor.detach().clone() for name, tensor in own.items()}
        with reads_of_callers(learner) as callers, Reads(own) as reads:
            measure_one(learner, given, {}, batch)
        self.obstacle = reads.obstacle
        tell_of_callers(callers)
        for other in self._passes.learners.values():  # a pass that has to be repeated would draw other random numbers
            other.objective.takes_gradients = learner.objective.takes_gradients
        if self._task.val_batches is not None:
            self._passes.streams.restart("validation", seed)
            check_validation_ends(self._task, seed, self._execution)


def _next(batches: Iterator[dict[int, Weighed]], most: int) -> list[dict[int, Weighed]]:
    """Take the next batches, several where they are small; none at the end."""
    some = list(islice(batches, 1))
    if some and most > 1:
        of_seeds = {id(weighed): weighed.batch for weighed in some[0].values()}  # which may have one in common
        num_that_fit = _BYTES_AT_ONCE // max(1, sum(map(size_bytes, of_seeds.values())))
        some += islice(batches, max(0, min(most, num_that_fit) - 1))
    return some
