"""Losses and metrics of members in eval mode and without gradients, all members of a chunk at once.

Values are averaged over batches by the weight of each (`weights.py`), so that a smaller last batch counts right.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from vecsweep import _interrupts as interrupts
from vecsweep._engine.batches import copy_batch, for_each, hand_out, key_of, member_dims, move
from vecsweep._engine.capture import upload
from vecsweep._engine.contract import Chunk
from vecsweep._engine.ensemble import Ensemble
from vecsweep._engine.graph import CHECKED_CALLS
from vecsweep._engine.learner import Learner
from vecsweep._engine.levels import Level, name_of_key
from vecsweep._engine.loaders import END, next_batch, opened
from vecsweep._engine.lowering import lower
from vecsweep._engine.objective import Objective
from vecsweep._engine.packing import unpack
from vecsweep._engine.rng import Streams
from vecsweep._engine.sources import check_validation_ends, is_fresh, own_loader
from vecsweep._engine.weights import weight_of
from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch, Batches, FloatArray
from vecsweep.execution import Execution
from vecsweep.kernels._trace import try_to_trace
from vecsweep.kernels.rules import MemberRules, SharedInputsError, checkpoints_run_through
from vecsweep.task import Task

_MAX_KINDS = 64  # of batches that are remembered
_RTOL = 1e-3  # the same operators in the same order: what differs at all differs by more


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
        with checkpoints_run_through(), MemberRules([], []):
            return objective.measure(parameters | shared | own, batch)

    given = copy_batch(batch) if seed_index is None else hand_out(batch, seed_index)
    mapped = vmap(member, in_dims=(0, 0, None if seed_index is None else member_dims(given)), out_dims=1)
    try:
        with objective.undisturbed(), objective.evaluating():
            return mapped(ensemble.parameters, own, given)
    except SharedInputsError:
        if seed_index is not None:
            raise
    return measure_at_once(objective, ensemble, *for_each(batch, ensemble.parameters))


class Measuring:
    """`measure_at_once`, traced for each kind of batch that comes again, as steps are.

    Args:
        objective: one member's loss and metrics.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._kinds: dict[Hashable, _Kind] = {}
        self._earlier: dict[str, Level] = {}

    @property
    def levels(self) -> dict[str, Level]:
        """How far each kind of batch has come."""
        return self._earlier | {name_of_key(key): kind.standing for key, kind in self._kinds.items()}

    def go_on(self, levels: Mapping[str, Level]) -> None:
        """Begin at levels that another process had come to."""
        self._earlier = dict(levels)

    def __call__(self, ensemble: Ensemble, batch: Batch, seed_index: Tensor | None) -> Tensor:
        """Measure all members of an ensemble in one pass: `[metric, member]`; nothing changes."""
        kind = key_of(batch)
        given = (ensemble.parameters, ensemble.buffers, batch, seed_index)
        leaves, structure = pytree.tree_flatten(given)

        def measure(*tensors: Tensor) -> list[Tensor]:
            tensors_left = iter(tensors)
            own = [next(tensors_left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            parameters, buffers, batch, seed_index = pytree.tree_unflatten(own, structure)
            members = replace(ensemble, parameters=parameters, buffers=buffers)
            return [measure_at_once(self._objective, members, batch, seed_index)]

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not kind.is_plain:
            return measure(*tensors)[0]
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        key = (len(ensemble), ensemble.member_buffers, seed_index is None, kind)
        if key not in self._kinds:
            own = self._kinds[key] = _Kind()
            if (level := self._earlier.get(name_of_key(key))) is not None:
                own.go_on(level, measure, tensors)
        return self._kinds[key](measure, tensors)


class _Kind:
    """How one kind of batch is measured: as it is at first, then as a graph, which is checked now and then."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._graph: Callable[..., list[Tensor]] | None = None

    @property
    def standing(self) -> Level:
        """How far it has come."""
        return Level(self._num_calls, self._graph is not None)

    def go_on(self, level: Level, measure: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> None:
        """Go to a level that another process had come to."""
        self._num_calls = level.num_calls
        if level.is_traced:
            self._trace(measure, tensors)

    def __call__(self, measure: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Tensor:
        self._num_calls += 1
        if self._num_calls == 2 and (result := self._trace(measure, tensors)) is not None:
            return result
        if self._graph is None:
            return measure(*tensors)[0]
        with torch.no_grad():
            result = self._graph(*tensors)[0]
        if self._num_calls not in CHECKED_CALLS or _is_close(result, expected := measure(*tensors)[0]):
            return result
        self._graph = None
        warn_of_fallback(
            "The traced evaluation gives other numbers than the eager one, so the loss in eval mode or a metric must "
            "depend on more than the model, its outputs and the batch. What it gave since the last check is in doubt; "
            "the members are evaluated without tracing from now on."
        )
        return expected

    def _trace(self, measure: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Tensor | None:
        """Make a graph, and return what was measured meanwhile; None if it cannot be had."""
        if (traced := try_to_trace(measure, tensors)) is None:
            return None
        self._graph = lower(traced).run
        return traced.results[0]


def _is_close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    return torch.allclose(a, b, rtol=_RTOL, atol=_RTOL * scale, equal_nan=True)


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
    with objective.undisturbed(), objective.evaluating():
        return objective.measure(tensors, copy_batch(batch))


class _Weighed(NamedTuple):
    """A batch, and how much it counts in a mean: a float64 scalar on the device."""

    batch: Batch
    weight: Tensor


class Evaluator:
    """Measure members on the validation batches, and, where asked, on one pass over the training batches.

    Args:
        task: whose batches and metrics.
        learners: one for each seed.
        streams: the random streams of the run.
        device: where members train.
        dtype: what floating-point tensors of batches are cast to; None leaves them alone.
        execution: whether progress is shown.
        has_train_metrics: whether to measure the metrics on the training batches, too.

    Raises:
        ValueError: there are no validation batches, or no end of them, or a metric is not a scalar.
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
        execution: Execution,
        has_train_metrics: bool,
    ) -> None:
        self._task = task
        self._execution = execution
        self._validated_on = own_loader(task.val_batches)
        self._learners = learners
        self._seeds = list(learners)
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._has_train_metrics = has_train_metrics
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
                parts.append(self._average(self._validation(), chunks, seeds))
            if self._has_train_metrics:
                parts.append([rows[1:] for rows in self._average(self._training(), chunks, seeds)])
        together = torch.cat([torch.cat(of_chunk) for of_chunk in zip(*parts, strict=True)], dim=1).cpu().numpy()
        return np.split(together, np.cumsum([len(chunk) for chunk in chunks])[:-1], axis=1)

    def _average(
        self, batches: Iterator[dict[int, _Weighed]], chunks: Sequence[Chunk], seeds: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Average over batches, by the weight of each for a member's seed."""
        totals = [torch.zeros((), dtype=torch.float64, device=self._device)] * len(chunks)
        places = {seed: place for place, seed in enumerate(self._seeds)}
        indices = [upload(np.array(list(map(places.__getitem__, own))), self._device) for own in seeds]
        whole = torch.zeros(len(self._seeds), dtype=torch.float64, device=self._device)
        for of_seeds in batches:
            interrupts.check()
            own_batches = {seed: weighed.batch for seed, weighed in of_seeds.items()}
            weights = torch.stack([of_seeds[seed].weight for seed in self._seeds])
            whole = whole + weights
            for k, (chunk, index) in enumerate(zip(chunks, indices, strict=True)):
                own = weights[index]
                # A seed whose batches have run out has a weight of 0 there, which NaN must not survive.
                totals[k] = totals[k] + torch.where(own > 0, own * chunk.measure(own_batches), 0.0)
        if not bool((whole > 0).all()):
            raise ValueError(
                "The batches to evaluate on must hold something; they yielded nothing when they were read again, or "
                "have no weight: look at what `batch_weight` returns, and for targets that the loss ignores."
            )
        return [total / whole[index] for total, index in zip(totals, indices, strict=True)]

    def _weigh(self, batch: Batch, source: Batches, seed: int) -> _Weighed:
        """Take a batch to the members, and say how much it counts."""
        learner = self._learners[seed]
        moved = move(batch, self._device, self._dtype, is_fresh=is_fresh(source))
        weight = weight_of(learner.task, learner.model, moved)
        return _Weighed(moved, weight.to(self._device, non_blocking=True))  # a number, which is copied at once

    def _validation(self) -> Iterator[dict[int, _Weighed]]:
        """The validation batches, which all seeds have in common."""
        assert self._task.val_batches is not None
        first = self._seeds[0]
        self._streams.restart("validation", first)
        source = opened(self._task.iterate_validation(self._validated_on))
        while True:
            self._streams.use("validation", first)
            if (batch := next_batch(source)) is END:
                return
            yield dict.fromkeys(self._seeds, self._weigh(batch, self._task.val_batches, first))

    def _training(self) -> Iterator[dict[int, _Weighed]]:
        """One pass over each seed's training batches, always in an order of its own; training goes on as without it."""
        sources = {}
        for seed in self._seeds:
            self._streams.restart("train metrics", seed)
            sources[seed] = opened(self._task.iterate(seed, own_loader(self._task.batches)))
        latest: dict[int, _Weighed] = {}
        while sources:
            for seed in list(sources):
                self._streams.use("train metrics", seed)
                if (batch := next_batch(sources[seed])) is END:
                    del sources[seed]
                    if seed in latest:
                        latest[seed] = latest[seed]._replace(weight=torch.zeros_like(latest[seed].weight))
                else:
                    latest[seed] = self._weigh(batch, self._task.batches, seed)
            if sources:
                yield dict(latest)

    def _check(self) -> None:
        """See that there is something to measure, by an ordinary pass over one batch, and an end of it."""
        source = self._training() if self._task.val_batches is None else self._validation()
        first = next(source, None)
        if first is None:
            raise ValueError(
                "`val_batches` must yield at least one batch; got none. Look at the length of the validation set."
            )
        batch = first[self._seeds[0]].batch
        self._task.check_batch(unpack(batch))
        learner = self._learners[self._seeds[0]]
        measure_one(learner, learner.parameters, dict(learner.model.named_buffers()), batch)
        if self._task.val_batches is not None:
            self._streams.restart("validation", self._seeds[0])
            check_validation_ends(self._task, self._execution)
