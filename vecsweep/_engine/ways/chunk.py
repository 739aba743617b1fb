"""A chunk of the vectorized engine: members that are stepped at once, carried through a window, measured, taken out."""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vecsweep import _interrupts as interrupts
from vecsweep._engine.caller.memory import is_out_of_memory, let_go_of
from vecsweep._engine.caller.rng import Turns
from vecsweep._engine.data.batches import Key, key_of, stack
from vecsweep._engine.graphs.capture import copy_all_, upload
from vecsweep._engine.graphs.slots import Offloaded, Slot
from vecsweep._engine.members.ensemble import Ensemble, MemberState, OptimizerState
from vecsweep._engine.members.measure import Foreseen, measure_one
from vecsweep._engine.members.optimizer import MemberOptimizers
from vecsweep._engine.members.step import REFUSED, norm_of
from vecsweep._engine.members.untrained import in_short, outcome_of
from vecsweep._engine.ways.contract import Curve, OutOfMemory, SeedsDiffer, StepBatches, Unmappable, Window
from vecsweep._engine.ways.explaining import explain
from vecsweep._engine.ways.program import Inputs
from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch, Hyper
from vecsweep.kernels.rules import Draw

if TYPE_CHECKING:
    from vecsweep._engine.ways.vectorized import Vectorized

_RECURRING = 3  # steps of a window whose batches are of one kind, from which on the first is traced


class VectorizedChunk:
    """Members that are stepped at once; see `contract.Chunk`.

    Args:
        engine: what is common to the chunks of a run.
        ensemble: the members.
        optimizers: their own, where there is no stacked update.
    """

    def __init__(self, engine: "Vectorized", ensemble: Ensemble, optimizers: MemberOptimizers | None) -> None:
        self._engine = engine
        self._ensemble = ensemble
        self._optimizers = optimizers
        self._seeds = list(dict.fromkeys(ensemble.seeds))  # in the order of the seed axis of stacked batches
        self._seed_index: Tensor | None = None  # [member], a member's place on it; None where all are of one seed
        if len(self._seeds) > 1:
            places = {seed: place for place, seed in enumerate(self._seeds)}
            self._seed_index = upload(np.array([places[seed] for seed in ensemble.seeds]), engine.device)
        self._saved: list[Tensor] | None = None
        self._saved_optimizers: list[OptimizerState] | None = None
        self._slot: Slot | None = None  # where the members train
        self._offloaded: Offloaded | None = None  # where their state waits, if on the host
        engine.chunks.add(self)
        if engine.is_offloaded:
            self.offload()

    def __len__(self) -> int:
        return len(self._ensemble)

    def run(self, window: Window, hyper: Hyper) -> Curve:
        """Train through a window."""
        if self._seed_index is not None:
            self._check_seeds_agree(window)
        state = list[Tensor]()
        try:
            state = self._begin()
            with warnings.catch_warnings():
                # vmap's warning that it runs an operator member by member; nothing that the caller could mend.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                curve = self._run(state, window, hyper)
            if self._engine.pattern.objective.has_checks:
                curve = self._with_failures(curve, state, window)
            self._commit()
        except interrupts.Stop:
            self._go_back()
            raise
        except Exception as error:
            failure = OutOfMemory() if is_out_of_memory(error) else Unmappable(explain(error))
            failure.__cause__ = error
        else:
            # A chunk that waits for its turn holds its state, and no more.
            self._saved = self._saved_optimizers = self._slot = None
            return curve
        # Not before here: as long as an error is being handled, the activations of the step that failed stay.
        state, self._slot = [], None
        self._engine.let_go()
        let_go_of(failure)
        self._go_back()
        try:
            raise failure
        finally:
            del failure  # or it would hold this frame, which holds it, and with them all members, until Python looks

    @property
    def is_offloaded(self) -> bool:
        """Whether the members wait for their turn in the memory of the host."""
        return self._offloaded is not None

    def offload(self) -> None:
        """Let the members wait for their turn in the memory of the host."""
        if self._offloaded is None and self._optimizers is None:
            self._offloaded = Offloaded(self._flat, self._engine.device)
            self._ensemble = self._with(self._offloaded.tensors)

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the members at the weights that they are evaluated at; no stacked update has such."""
        return nullcontext() if self._optimizers is None else self._optimizers.evaluating()

    def measure(self, batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch, in eval mode and without gradients."""
        own = [batches[seed] for seed in self._seeds]
        is_common = all(batch is own[0] for batch in own)
        if self._engine.is_measured_at_once and (is_common or _can_be_stacked(own)):
            foreseen = self._engine.measure.foreseen(own[0])
            is_stacked = len(own) > 1 and (not is_common or len(foreseen.draws) > 0)
            batch, seed_index = (stack(own), self._seed_index) if is_stacked else (own[0], None)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                    drawn = self._drawn_to_evaluate(foreseen)
                    measured = self._engine.measure(self._on_device(), batch, foreseen, drawn, seed_index)
                    return self._with_refused(measured, batches)
            except Exception as error:
                if self._engine.give_own_tensors(error) or self._engine.foresee(error, own[0], self._seeds[0]):
                    return self.measure(batches)
                if not is_out_of_memory(error):
                    reason, measured = explain(error), self._measure_each(batches)  # or raises the task's own error
                    self._engine.is_measured_at_once = False
                    warn_of_fallback(
                        "The members are evaluated one after another, because PyTorch cannot batch their loss and "
                        f"metrics in eval mode: {reason}. The result is the same."
                    )
                    return measured
        return self._measure_each(batches)

    def _drawn_to_evaluate(self, foreseen: Foreseen) -> list[Tensor]:
        """Draw what each member alone would, with a seed axis if the seeds are several; numbers stay to be drawn."""
        if not (foreseen.draws or foreseen.has_numbers):
            return []
        drawn = []
        for seed in self._seeds:
            self._engine.streams.restart("evaluation", seed)
            drawn.append([draw() for draw in foreseen.draws])
        return drawn[0] if self._seed_index is None else stack(drawn)

    def _measure_each(self, batches: Mapping[int, Batch]) -> Tensor:
        """Evaluate one member after another."""
        return torch.stack([self._measure_member(i, batches) for i in range(len(self))], dim=1)

    def _with_refused(self, measured: Tensor, batches: Mapping[int, Batch]) -> Tensor:
        """Measure by ordinary passes, which may raise, who is NaN where a check of numbers may be the reason."""
        if self._engine.pattern.objective.has_checks:
            is_refused = measured.isnan().all(0) & self._on_device().fate.alive
            for i in is_refused.nonzero().flatten().tolist():
                measured[:, i] = self._measure_member(i, batches)
        return measured

    def _measure_member(self, i: int, batches: Mapping[int, Batch]) -> Tensor:
        """Evaluate one member by an ordinary pass: `[metric]`."""
        state, seed = self._on_device().member(i), self._ensemble.seeds[i]
        self._engine.streams.restart("evaluation", seed)
        pattern = self._engine.learners[seed]
        return measure_one(pattern, state.parameters, state.buffers, batches[seed], pattern)

    def members(self, positions: Sequence[int], *, is_last: bool = False) -> list[MemberState]:
        """Take the states of some members."""
        states = [self._settled.member(i) for i in positions]
        if self._optimizers is not None:
            optimizers = map(self._optimizers.state, positions)
            states = [replace(state, optimizer=own) for state, own in zip(states, optimizers, strict=True)]
        return states if is_last else [state.copy() for state in states]

    def copies(self, copy: Callable[[Tensor], Tensor]) -> list[MemberState]:
        """Copy the states of all members to the host: stacked, because each transfer from a GPU waits for it."""
        if self._optimizers is not None:
            return [state.mapped(copy) for state in self.members(range(len(self)), is_last=True)]
        copied = pytree.tree_map(copy, self._settled.tensors)
        ensemble = self._ensemble.with_tensors(copied)
        return [ensemble.member(i) for i in range(len(self))]

    def select(self, keep: Sequence[int]) -> "VectorizedChunk":
        """Take some members out."""
        seeds = [self._ensemble.seeds[i] for i in keep]
        if self._optimizers is not None or len(set(seeds)) != len(self._seeds):
            return self._engine.load(self.members(keep, is_last=True), seeds)  # which copies
        return VectorizedChunk(self._engine, self._settled.select(keep), None)

    @property
    def _settled(self) -> Ensemble:
        """The members where they wait; on the host once they have come there."""
        if self._offloaded is not None:
            self._offloaded.wait()
        return self._ensemble

    @property
    def _flat(self) -> list[Tensor]:
        return pytree.tree_leaves(self._ensemble.tensors)

    def _with(self, tensors: Sequence[Tensor]) -> Ensemble:
        """The members with other tensors, flat."""
        structure = pytree.tree_structure(self._ensemble.tensors)
        return self._ensemble.with_tensors(pytree.tree_unflatten(list(tensors), structure))

    def _take(self, slot: Slot) -> None:
        """See that the members' state is in a slot."""
        if slot.is_of(self):
            return
        slot.note(None)
        if self._offloaded is not None:
            self._offloaded.load(slot)
        else:
            copy_all_(slot.tensors, self._flat)
        slot.note(self)

    def _on_device(self) -> Ensemble:
        """The members where they can be measured; not to be changed."""
        if self._offloaded is None or (slot := self._engine.slot(self._flat)) is None:
            return self._ensemble
        self._take(slot)
        return self._with(slot.tensors)

    def _begin(self) -> list[Tensor]:
        """The flat state to train on: a slot, or, where the chunk has none, its own, of which a copy is kept."""
        own = self._flat
        if self._optimizers is None and (slot := self._engine.slot(own)) is not None:
            self._take(slot)
            slot.note(None)
            self._slot = slot
            return slot.tensors
        self._saved = [tensor.clone() for tensor in own]
        if self._optimizers is not None:
            self._saved_optimizers = [copy.deepcopy(self._optimizers.state(i)) for i in range(len(self))]
        return own

    def _commit(self) -> None:
        """Take over the state that a window has led to."""
        if self._slot is None:
            return
        if self._offloaded is not None:
            self._offloaded.store(self._slot)
        else:
            copy_all_(self._flat, self._slot.tensors)
        self._slot.note(self)

    def _go_back(self) -> None:
        """Undo the steps since the snapshot, and give its memory back."""
        if self._saved is not None:
            torch._foreach_copy_(self._flat, self._saved)
        if self._saved_optimizers is not None:
            parameters = self._ensemble.parameters
            self._optimizers = MemberOptimizers(self._engine.pattern, parameters, self._saved_optimizers)
        self._saved = self._saved_optimizers = self._slot = None

    def _run(self, state: Sequence[Tensor], window: Window, hyper: Hyper) -> Curve:
        device = self._engine.device
        # In one transfer, and contiguous, because compiled code takes strides for granted.
        rows = upload(np.array(list(hyper.values()), order="C"), device)  # [name, step, member]
        of_steps = [dict(zip(hyper, own.unbind(), strict=True)) for own in rows.unbind(dim=1)]
        losses = torch.empty(len(window), len(self), dtype=torch.float64, device=device)
        alive = torch.empty(len(window), len(self), dtype=torch.bool, device=device)
        norms = {name: torch.empty_like(losses) for name in self._engine.recorded}
        all_kinds = [tuple(key_of(batch) for batch in step_batches[self._seeds[0]]) for step_batches in window]
        recurring = {kinds for kinds, num in Counter(all_kinds).items() if num >= _RECURRING}
        ensemble, t = self._with(state), 0
        while t < len(window):
            kinds, steps = all_kinds[t], [self._inputs(window[t], all_kinds[t], of_steps[t])]
            take_steps = self._engine.program(
                ensemble, steps[0], kinds, len(self._seeds), is_recurring=kinds in recurring
            )
            for k in range(t + 1, min(len(window), t + take_steps.num_ahead)):
                if all_kinds[k] != kinds:
                    break
                steps.append(self._inputs(window[k], kinds, of_steps[k]))
            span = slice(t, t + len(steps))
            losses[span], alive[span], is_stepped, found, grads = take_steps(state, steps, self._engine.num_done + t)
            if self._optimizers is not None:
                own_rows = {name: values[t].tolist() for name, values in hyper.items()}
                found |= self._step_each(self._optimizers, grads, own_rows, is_stepped[0])
            for name, norm in found.items():
                norms[name][span] = norm
            t += len(steps)
        return Curve(losses, alive, norms)

    def _with_failures(self, curve: Curve, state: Sequence[Tensor], window: Window) -> Curve:
        """Say why passes were refused, by ordinary ones: who has diverged keeps the weights that it had then.

        Raises:
            Exception: what such a pass raises that is not of the weights.
            RuntimeError: it goes on where the batched one was refused.
        """
        ensemble = self._with(state)
        loss, failures = curve.loss.clone(), dict[int, str]()
        for t, i in (loss == REFUSED).nonzero().tolist():
            seed = ensemble.seeds[i]
            learner = self._engine.learners[seed]
            outcome = outcome_of(learner, ensemble.member(i), window[t][seed], seed, self._engine.streams)
            if isinstance(outcome, Exception):
                loss[t, i], failures[i] = torch.nan, in_short(outcome)
            elif math.isfinite(outcome):
                raise RuntimeError("a check of numbers fails in a batched pass, and not in an ordinary one")
            else:
                loss[t, i] = outcome
        return curve._replace(loss=loss, failures=failures)

    def _step_each(
        self,
        optimizers: MemberOptimizers,
        grads: Mapping[str, Tensor | None],
        hyper: Mapping[str, Sequence[float]],
        is_stepped: Tensor,
    ) -> dict[str, Tensor]:
        """Let each member's own optimizer step; return the norm of the update, if it is recorded."""
        is_recorded = "update_norm" in self._engine.recorded
        parameters = self._ensemble.parameters
        before = {name: p.clone() for name, p in parameters.items()} if is_recorded else {}
        optimizers.step_(grads, hyper, is_stepped.tolist(), self._ensemble.seeds, Turns(self._engine.streams))
        if not is_recorded:
            return {}
        norm = norm_of({name: p - before[name] for name, p in parameters.items()}, self._ensemble.fate.ceiling)
        return {"update_norm": torch.where(is_stepped, norm, torch.nan)}

    def _inputs(self, step_batches: StepBatches, kinds: Sequence[Key], hyper: Mapping[str, Tensor]) -> Inputs:
        """What a step takes."""
        return Inputs(*self._gather(step_batches, kinds), self._seed_index, hyper)

    def _gather(
        self, step_batches: StepBatches, kinds: Sequence[Key]
    ) -> tuple[list[Batch], list[list[Draw]], list[list[Tensor]]]:
        """The batches of one step, and what is drawn for each, with a seed axis if the seeds are several."""
        seeds = self._seeds
        of_first = step_batches[seeds[0]]
        draws = [self._engine.probe(b, kind, seeds[0]).draws for b, kind in zip(of_first, kinds, strict=True)]
        drawn = {}
        for seed in seeds:
            if any(draws) or self._engine.draws_numbers:
                self._engine.streams.use("model", seed)
            drawn[seed] = [[draw() for draw in of_batch] for of_batch in draws]
        if self._seed_index is None:
            return list(step_batches[seeds[0]]), draws, drawn[seeds[0]]
        return (
            [stack(of_seeds) for of_seeds in zip(*(step_batches[seed] for seed in seeds), strict=True)],
            draws,
            [stack(of_seeds) for of_seeds in zip(*(drawn[seed] for seed in seeds), strict=True)],
        )

    def _check_seeds_agree(self, window: Window) -> None:
        """Raise SeedsDiffer unless the seeds have batches of one kind in every step, and draw no numbers."""
        if self._engine.draws_numbers:
            raise SeedsDiffer
        for step_batches in window:
            for of_seeds in zip(*(step_batches[seed] for seed in self._seeds), strict=True):
                if not _can_be_stacked(of_seeds):
                    raise SeedsDiffer


def _can_be_stacked(batches: Sequence[Batch]) -> bool:
    """Whether batches of several seeds are of one kind, all of whose numbers are in tensors."""
    kinds = {key_of(batch) for batch in batches}
    return len(kinds) == 1 and next(iter(kinds)).is_plain
