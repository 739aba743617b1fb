"""Losses and metrics of one batch, in eval mode and without gradients: of all members at once, or of one.

Every batch is drawn for as after `torch.manual_seed(seed)`. For all members at once an ordinary pass is recorded, and
what it drew is drawn before each batched one, as it is for steps.

Not here: batches, and averages over them (`evaluate.py`).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.caller.rng import Streams, is_same_but_for_numbers, is_same_state, no_numbers_drawn
from vecsweep._engine.data.batches import copy_batch, for_each, hand_out, key_of, member_dims
from vecsweep._engine.graphs.capture import Pool
from vecsweep._engine.graphs.graph import CHECKED_CALLS
from vecsweep._engine.graphs.levels import Level, name_of_key
from vecsweep._engine.graphs.lowering import lower
from vecsweep._engine.graphs.staging import Captures
from vecsweep._engine.members.ensemble import Ensemble
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.objective import Objective
from vecsweep._engine.members.untrained import in_short, is_of_weights
from vecsweep._errors import warn_of_fallback, warn_of_trouble
from vecsweep._types import Batch
from vecsweep.kernels._compiled import compiled_run_through
from vecsweep.kernels._trace import try_to_trace
from vecsweep.kernels.rules import (
    Draw,
    MemberRules,
    Recorder,
    SharedInputsError,
    UnforeseenDrawError,
    checkpoints_run_through,
    functions_for_each,
)

_MAX_KINDS = 64  # of batches that are remembered
_RTOL = 1e-3  # the same operators in the same order: what differs at all differs by more


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What evaluating a kind of batch draws at random.

    Attributes:
        draws: of tensors.
        has_numbers: whether it draws from the generators of Python or NumPy, too.
    """

    draws: Sequence[Draw] = ()
    has_numbers: bool = False


_NOTHING = Foreseen()


def foresee(learner: Learner, batch: Batch, seed: int, streams: Streams) -> Foreseen:
    """See by an ordinary pass what evaluating a batch draws; nothing of it where that cannot be repeated."""
    streams.restart("evaluation", seed)
    with Recorder() as recorder, checkpoints_run_through():
        measure_one(learner, learner.parameters, dict(learner.model.named_buffers()), batch)
    end = streams.mark("evaluation", seed)
    streams.restart("evaluation", seed)
    for draw in recorder.draws:
        draw()
    repeated = streams.mark("evaluation", seed)
    if not is_same_but_for_numbers(repeated, end):
        return _NOTHING
    return Foreseen(recorder.draws, has_numbers=not is_same_state(repeated, end))


def measure_at_once(
    objective: Objective,
    ensemble: Ensemble,
    batch: Batch,
    foreseen: Foreseen,  # of such a batch
    drawn: Sequence[Tensor],  # for its draws
    seed_index: Tensor | None,  # [member], a member's place on the seed axis of batch and drawn; None without
) -> Tensor:
    """Measure all members of an ensemble in one pass: `[metric, member]`, NaN where one alone would raise.

    Nothing changes.

    Raises:
        UnforeseenDrawError: more is drawn than was foreseen.
    """
    shared = {name: b.clone() for name, b in ensemble.buffers.items() if name not in ensemble.member_buffers}
    own = {name: b.clone() for name, b in ensemble.buffers.items() if name in ensemble.member_buffers}

    def member(parameters: dict[str, Tensor], own: dict[str, Tensor], batch: Batch, drawn: Sequence[Tensor]) -> Tensor:
        rules = MemberRules(foreseen.draws, drawn, owns_new=objective.owns_new)
        took_gradients = objective.takes_gradients
        with checkpoints_run_through(), functions_for_each(), rules:
            measured = objective.measure(parameters | shared | own, batch)
        rules.check_end(is_repeated=objective.takes_gradients and not took_gradients)
        if rules.is_good is None:
            return measured
        objective.has_checks = True
        return torch.where(rules.is_good, measured, torch.nan)

    given = (copy_batch(batch), list(drawn)) if seed_index is None else hand_out((batch, list(drawn)), seed_index)
    dims = (None, None) if seed_index is None else member_dims(given)
    mapped = vmap(member, in_dims=(0, 0, *dims), out_dims=1)
    may_draw_numbers = foreseen.has_numbers and len(set(ensemble.seeds)) == 1
    try:
        drawing = nullcontext() if may_draw_numbers else no_numbers_drawn()
        with objective.undisturbed(), objective.evaluating(), compiled_run_through(), drawing:
            return mapped(ensemble.parameters, own, *given)
    except SharedInputsError:
        if seed_index is not None:
            raise
    (batch, drawn), seed_index = for_each((batch, list(drawn)), ensemble.parameters)
    return measure_at_once(objective, ensemble, batch, foreseen, drawn, seed_index)


class Measuring:
    """`measure_at_once`, traced and on a GPU captured for each kind of batch that comes again, as steps are.

    Args:
        objective: one member's loss and metrics.
        pool: the memory of what is captured; None where nothing can be.
    """

    def __init__(self, objective: Objective, pool: Pool | None = None) -> None:
        self._objective = objective
        self._pool = pool
        self._kinds: dict[Hashable, _Kind] = {}
        self._foreseen: dict[Hashable, Foreseen] = {}  # by the form of a seed's batch
        self._earlier: dict[str, Level] = {}

    @property
    def levels(self) -> dict[str, Level]:
        """How far each kind of batch has come."""
        return self._earlier | {name_of_key(key): kind.standing for key, kind in self._kinds.items()}

    def go_on(self, levels: Mapping[str, Level]) -> None:
        """Begin at levels that another process had come to."""
        self._earlier = dict(levels)

    def let_go(self) -> None:
        """Give the memory of what was captured back."""
        for kind in self._kinds.values():
            kind.let_go()

    def foreseen(self, batch: Batch) -> Foreseen:
        """What evaluating a seed's batch draws, as far as passes have shown."""
        return self._foreseen.get(key_of(batch).form, _NOTHING) if self._foreseen else _NOTHING

    def foresee(self, learner: Learner, batch: Batch, seed: int, streams: Streams) -> bool:
        """See what evaluating such a batch draws; say whether that was not known, and can be repeated."""
        form = key_of(batch).form
        if form in self._foreseen:
            return False
        if len(self._foreseen) >= _MAX_KINDS:
            self._foreseen.clear()
        self._foreseen[form] = foresee(learner, batch, seed, streams)
        return self._foreseen[form] is not _NOTHING

    def __call__(
        self, ensemble: Ensemble, batch: Batch, foreseen: Foreseen, drawn: Sequence[Tensor], seed_index: Tensor | None
    ) -> Tensor:
        """Measure all members of an ensemble in one pass, as `measure_at_once` does; nothing changes."""
        kind = key_of(batch)
        given = (ensemble.parameters, ensemble.buffers, batch, list(drawn), seed_index)
        leaves, structure = pytree.tree_flatten(given)

        def measure(*tensors: Tensor) -> list[Tensor]:
            tensors_left = iter(tensors)
            own = [next(tensors_left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            parameters, buffers, batch, drawn, seed_index = pytree.tree_unflatten(own, structure)
            members = replace(ensemble, parameters=parameters, buffers=buffers)
            return [measure_at_once(self._objective, members, batch, foreseen, drawn, seed_index)]

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not kind.is_plain or foreseen.has_numbers:
            return measure(*tensors)[0]
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        key = (len(ensemble), ensemble.member_buffers, seed_index is None, kind)
        if key not in self._kinds:
            num_state = len(ensemble.parameters) + len(ensemble.buffers)
            own = self._kinds[key] = _Kind(Captures(num_state, 1, self._pool, is_divisible=False))
            if (level := self._earlier.get(name_of_key(key))) is not None:
                own.go_on(level, measure, tensors)
        try:
            return self._kinds[key](measure, tensors)
        except UnforeseenDrawError:
            del self._kinds[key]  # whose levels begin anew where what is drawn is known
            raise


class _Kind:
    """How one kind of batch is measured: as it is at first, then as a graph, which is checked now and then."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
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

    def let_go(self) -> None:
        """Give the memory of what was captured back."""
        self._captures.clear()

    def __call__(self, measure: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Tensor:
        self._num_calls += 1
        if self._num_calls == 2 and (result := self._trace(measure, tensors)) is not None:
            return result
        if self._graph is None:
            return measure(*tensors)[0]
        result = self._captures(self._graph, tensors)[0]
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
    learner: Learner,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: Batch,
    pattern: Learner | None = None,
) -> Tensor:
    """Measure one member by an ordinary pass: `[metric]`; nothing changes.

    Args:
        learner: a pattern of the member.
        parameters: the member's, by name.
        buffers: likewise.
        batch: one batch.
        pattern: a learner that is untrained, by which a pass that fails because the member has diverged is known: all
            it measures is NaN then; None lets it fail.
    """
    own = partial(_measure, learner, parameters, buffers, batch)
    try:
        return own()
    except Exception as error:
        if pattern is None or is_out_of_memory(error):
            raise
        untrained = partial(_measure, pattern, pattern.parameters, dict(pattern.model.named_buffers()), batch)
        if not is_of_weights(error, own, untrained):
            raise
        if not pattern.objective.has_told_of_failure:
            pattern.objective.has_told_of_failure = True
            warn_of_trouble(
                "An evaluation fails with a member's weights, and not with untrained ones; what it measures is NaN, "
                f"and so it is of other members with which it fails. {in_short(error)}"
            )
        return torch.full_like(untrained(), torch.nan)


def _measure(learner: Learner, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> Tensor:
    objective = learner.objective
    tensors = dict(parameters) | {name: buffer.clone() for name, buffer in buffers.items()}
    with objective.undisturbed(), objective.evaluating(), objective.drawing_openly():
        return objective.measure(tensors, copy_batch(batch))
