"""The same contract, member by member, on stock torch.optim: the reference, and the way of models that do not batch.

Unlike the vectorized engine it looks at each loss as it comes, because a stock optimizer cannot be told on the device
to leave a diverged member alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vecsweep._engine.caller.lending import Lent, is_special
from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.caller.rng import State, Streams, is_same_state
from vecsweep._engine.caller.watch import Changes, Watch, without
from vecsweep._engine.data.batches import copy_batch
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.members.divergence import Fate, judge
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner, put_tensors, taken_out
from vecsweep._engine.members.measure import measure_one
from vecsweep._engine.members.reads import tell_of_shared
from vecsweep._engine.members.sameness import is_same
from vecsweep._engine.members.stock import evaluating, fastest_kernel, load_state, save_state, step_
from vecsweep._engine.members.untrained import in_short, is_of_weights, untrained_losses
from vecsweep._engine.ways.contract import Curve, Window
from vecsweep._types import Batch, Hyper
from vecsweep.execution import Execution
from vecsweep.stumbles import explain


class Sequential:
    """The engine that steps members one after another.

    Args:
        learners: one for each seed; the patterns of its members.
        execution: precision, clipping.
        streams: the random streams of the run.
        moved: by seed, what reading batches has changed outside the model; kept up to date by who reads them.
        recorded: the norms that are noted at each step.
    """

    def __init__(
        self,
        learners: Mapping[int, Learner],
        execution: Execution,
        streams: Streams,
        moved: Mapping[int, Changes] | None = None,
        recorded: Sequence[str] = (),
    ) -> None:
        self.learners = learners
        self.execution = execution
        self.recorded = recorded
        self.streams = streams
        self._pattern = next(iter(learners.values()))
        self.outside = Watch.outside(self._pattern.task, self._pattern.model)
        self._moved = {} if moved is None else moved

    @contextmanager
    def alone(self, own: Changes, seed: int) -> Iterator[None]:
        """Let a member find outside the model what its own passes have left there, as if it trained alone.

        Args:
            own: what they have left; updated.
            seed: the member's.
        """
        moved = self._moved.get(seed, {})
        self.outside.put(moved)
        self.outside.put(own)
        try:
            yield
        finally:
            changes = self.outside.changes()
            own.clear()
            own.update(without(changes, moved))
            self.outside.set_back(changes)
        tell_of_shared(self._pattern, self.outside.shared(own))

    def start(self, seed: int) -> MemberState:
        """The state of a member of this seed before its first step."""
        learner = self.learners[seed]
        parameters = {name: p.detach() for name, p in learner.parameters.items()}
        return MemberState.start(parameters, dict(learner.model.named_buffers()), self.execution.precision)

    def load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "SequentialChunk":
        """Make a learner for each member."""
        device = next(iter(self._pattern.parameters.values())).device
        here = (state if state.fate.alive.device == device else state.on(device) for state in members)
        return SequentialChunk(self, [_Member(self, state, seed) for state, seed in zip(here, seeds, strict=True)])


class SequentialChunk:
    """Members that take turns; see `contract.Chunk`."""

    is_offloaded = False

    def __init__(self, engine: Sequential, members: Sequence["_Member"]) -> None:
        self._engine = engine
        self._members = list(members)

    def __len__(self) -> int:
        return len(self._members)

    def run(self, window: Window, hyper: Hyper) -> Curve:
        """Train each member through the whole window, from where its random numbers stand."""
        streams = self._engine.streams
        starts = {seed: streams.mark("model", seed) for seed in {member.seed for member in self._members}}
        ends = dict[int, State]()
        curves = []
        standing: State | None = next(reversed(starts.values()))  # as the generators are; to set them takes long
        for i, member in enumerate(self._members):
            if (start := member.stream or starts[member.seed]) is not standing:
                streams.rewind("model", member.seed, start)
                streams.use("model", member.seed)
            with self._engine.alone(member.outside, member.seed):
                steps = [
                    member.step(batches[member.seed], {name: float(values[t, i]) for name, values in hyper.items()})
                    for t, batches in enumerate(window)
                ]
            member.zero_grad()  # the next member needs as much memory
            curves.append(steps)
            standing = None
            if member.is_alive:  # a member that diverged has not drawn all
                standing = end = streams.mark("model", member.seed)
                common = ends.setdefault(member.seed, end)
                member.stream = common if is_same_state(common, end) else end  # once in memory
        for seed, end in (starts | ends).items():
            if end is not standing:
                streams.rewind("model", seed, end)
        loss, alive, *norms = np.array(curves).transpose(2, 1, 0)  # [member, step, 2 and the norms]
        device = self._members[0].device
        return Curve(
            torch.tensor(loss, device=device),
            torch.tensor(alive, dtype=torch.bool, device=device),
            {name: torch.tensor(own, device=device) for name, own in zip(self._engine.recorded, norms, strict=True)},
            {i: member.failure for i, member in enumerate(self._members) if member.failure},
        )

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the members at the weights that they are evaluated at."""
        return evaluating([member.optimizer for member in self._members])

    def measure(self, batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch, in eval mode and without gradients."""
        rows = []
        for member in self._members:
            self._engine.streams.restart("evaluation", member.seed)
            with self._engine.alone(dict(member.outside), member.seed):
                rows.append(member.measure(batches[member.seed]))
        return torch.stack(rows, dim=1)

    def members(self, positions: Sequence[int], *, is_last: bool = False) -> list[MemberState]:
        """Take the states of some members."""
        states = [self._members[i].state() for i in positions]
        return states if is_last else [state.copy() for state in states]

    def let_go(self, i: int) -> None:
        """Give back the memory of a member that is not stepped again."""
        self._members[i].let_go()

    def copies(self, copy: Callable[[Tensor], Tensor]) -> list[MemberState]:
        """Copy the states of all members to the host."""
        return [state.mapped(copy) for state in self.members(range(len(self)), is_last=True)]

    def select(self, keep: Sequence[int]) -> "SequentialChunk":
        """Take some members out."""
        return SequentialChunk(self._engine, [self._members[i] for i in keep])


class _Member:
    """One member as an ordinary training loop has it.

    Args:
        engine: what is common to the members.
        member: the state from which it goes on.
        seed: of its batches and random numbers.
    """

    def __init__(self, engine: Sequential, member: MemberState, seed: int) -> None:
        self.seed = seed
        self._execution = engine.execution
        self._recorded = engine.recorded
        self._pattern = engine.learners[seed]
        self._learner = self._pattern.copy()
        self._learner.keep_(member.kept, self._pattern)
        self._streams = engine.streams
        self._outside = engine.outside
        self.outside = engine.outside.translate(engine.outside.of_own(member.kept), engine.outside)
        with torch.no_grad():
            for name, value in member.parameters.items():
                if not value.is_set_to(self._pattern.parameters[name]):  # whose copy it is
                    self._learner.parameters[name].copy_(value)
        put_tensors(self._learner.model, member.buffers)
        self._lent = Lent({n: p for n, p in self._learner.objective.lent.items() if n not in member.buffers})
        load_state(self._learner.optimizer, self._learner.parameters, member.optimizer)
        self._kernel = fastest_kernel(self._learner.optimizer)
        self._ceiling, self._streak = float(member.fate.ceiling), int(member.fate.streak)
        self.is_alive = bool(member.fate.alive)
        self.failure = ""  # that it diverged by
        self.stream = member.stream  # where its random numbers stand; None until it has drawn some
        self.device = member.fate.alive.device
        self._scale = member.scale

    @property
    def optimizer(self) -> Optimizer:
        """The member's own."""
        return self._learner.optimizer

    def zero_grad(self) -> None:
        """Give the gradients' memory back."""
        self._learner.optimizer.zero_grad()

    def step(self, batches: Sequence[Batch], hyper: Mapping[str, float]) -> tuple[float, ...]:
        """Take one step; return its loss, whether the member is alive after it, and the norms that are recorded."""
        norms: dict[str, float] = dict.fromkeys(self._recorded, math.nan)
        if not self.is_alive:
            return math.nan, False, *norms.values()
        optimizer, parameters = self._learner.optimizer, list(self._learner.parameters.values())
        optimizer.zero_grad()
        try:
            loss = self._backward(batches)
        except Exception as error:
            untrained = partial(untrained_losses, self._pattern, batches, self.seed, self._streams)
            if is_out_of_memory(error) or not is_of_weights(error, partial(self._repeat, batches), untrained):
                for batch in batches:
                    explain(error, self._pattern.task, unpack(batch))
                raise
            self.is_alive, self.failure = False, in_short(error)
            return math.nan, False, *norms.values()
        if self._lent.changed:
            self._own_(self._lent.changed)
        self._streak, self.is_alive = judge(self._ceiling, self._streak, loss)
        if self.is_alive and self._unscale_(parameters):
            if "grad_norm" in norms:
                norms["grad_norm"] = float(get_total_norm([p.grad for p in parameters if p.grad is not None]))
            before = [p.detach().clone() for p in parameters] if "update_norm" in norms else []
            if self._execution.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self._execution.max_grad_norm)
            self._learner.set_hyper(hyper)
            step_(optimizer, self._kernel)
            if "update_norm" in norms:
                changes = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
                norms["update_norm"] = float(get_total_norm(changes))
        return loss, self.is_alive, *norms.values()

    def _backward(self, batches: Sequence[Batch]) -> float:
        """Add up the gradients of the batches of a step; return their loss."""
        loss = 0.0
        with self._lent:
            for batch in batches:
                batch_loss = self._learner.objective.compute(copy_batch(batch))
                own = batch_loss if len(batches) == 1 else batch_loss / len(batches)
                (own if self._scale is None else own * self._scale.value[0]).backward()
                loss += float(batch_loss.detach()) / len(batches)
        return loss

    def _repeat(self, batches: Sequence[Batch]) -> None:
        """Pass over batches as for a step, without gradients and with other random numbers."""
        with self._lent:
            for batch in batches:
                self._learner.objective.compute(copy_batch(batch))

    def measure(self, batch: Batch) -> Tensor:
        """Compute the loss and the metrics of a batch: `[metric]`."""
        return measure_one(self._learner, self._trained(), self._changing(), batch, self._pattern)

    def state(self) -> MemberState:
        """The member's state; its tensors are the member's own."""
        fate = Fate.start(self.device, self._ceiling)
        fate = replace(fate, streak=fate.streak.fill_(self._streak), alive=fate.alive.fill_(self.is_alive))
        return MemberState(
            parameters=self._trained(),
            buffers=self._changing(),
            optimizer=save_state(self._learner.optimizer, self._learner.parameters),
            fate=fate,
            scale=self._scale,
            kept=self._learner.kept(self._pattern) | self._outside.translate(self.outside, self._outside),
            stream=self.stream if self.is_alive else None,
        )

    def let_go(self) -> None:
        """Give back the memory of all that has been handed over."""
        del self._learner

    def _own_(self, changed: Mapping[str, Tensor]) -> None:
        """Take what a pass has written to parameters that are lent for the member's own."""
        lent = dict(self._learner.objective.lent)
        for name, value in changed.items():
            lent[name].data = value
        before = self._pattern.constants
        self._lent = Lent({name: p for name, p in lent.items() if is_special(p) or p.is_set_to(before[name])})

    def _trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, or what passes have put in their place."""
        named = dict(self._learner.model.named_parameters())
        if gone := [name for name in self._learner.parameters if name not in named]:
            raise taken_out(gone[0])
        return {name: named[name].detach() for name in self._learner.parameters}

    def _changing(self) -> dict[str, Tensor]:
        """The buffers, and those parameters that are not trained and yet are no longer what they were."""
        buffers, before = dict(self._learner.model.named_buffers()), self._pattern.constants
        return {
            name: tensor
            for name, tensor in self._learner.constants.items()
            if name in buffers or name not in before or not is_same(tensor, before[name])
        }

    def _unscale_(self, parameters: Sequence[Tensor]) -> bool:
        """Take the loss scale out of the gradients; say whether they are finite, so that the step is taken."""
        if self._scale is None:
            return True
        grads = [p.grad for p in parameters if p.grad is not None]
        for grad in grads:
            grad.mul_(self._scale.inverse.squeeze().to(grad.dtype))  # a parameter may have no axis
        is_finite = not grads or bool(torch.stack([grad.isfinite().all() for grad in grads]).all())
        self._scale = self._scale.after(torch.tensor([is_finite], device=self.device))
        return is_finite
