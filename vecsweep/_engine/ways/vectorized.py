"""All members in one pass: stacked parameters, one program for each kind of batch.

Not here: how a chunk goes through a window (`chunk.py`), the mathematics of a step (`step.py`), how it is run fast
(`program.py`), and the order of windows and chunks and what becomes of members that diverged (`loop.py`).
"""

import weakref
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vecsweep._engine.caller.memory import is_out_of_memory, let_go_of
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.batches import Key, key_of
from vecsweep._engine.graphs.capture import Pool, is_capturable
from vecsweep._engine.graphs.levels import Level, Stepping, name_of_key
from vecsweep._engine.graphs.slots import Slot, Slots
from vecsweep._engine.members.ensemble import Ensemble, MemberState
from vecsweep._engine.members.footprint import Footprint
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.measure import Measuring
from vecsweep._engine.members.optimizer import MemberOptimizers, StackedUpdate
from vecsweep._engine.members.probe import Probe, probe
from vecsweep._engine.members.sameness import is_same
from vecsweep._engine.members.step import Step
from vecsweep._engine.ways.chunk import VectorizedChunk
from vecsweep._engine.ways.contract import OutOfMemory, Unmappable
from vecsweep._engine.ways.program import Inputs, Program
from vecsweep._errors import warn_of_stumble
from vecsweep._types import Batch
from vecsweep.execution import Execution
from vecsweep.kernels.rules import UnforeseenDrawError, is_shared_write

_MAX_KINDS = 256  # of batches that are remembered
_MAX_GRAPHS = 16  # loaders that never repeat a shape would trace for ever


class Vectorized:
    """The engine that steps all members of a chunk at once.

    Args:
        learners: one for each seed; the patterns of its members.
        execution: precision, clipping.
        streams: the random streams of the run.
        first: the first batch of the first seed.
        seen: what passes over it have shown; no obstacle.
        varied: the names of the hyperparameters that members have for themselves.
        recorded: the norms that are noted at each step.

    Attributes:
        device: on which they train.
        chunks: that there are.
        is_offloaded: whether they wait for their turn in the memory of the host.
    """

    def __init__(
        self,
        learners: Mapping[int, Learner],
        execution: Execution,
        streams: Streams,
        first: Batch,
        seen: Probe,
        varied: Iterable[str] = ("lr",),
        recorded: Sequence[str] = (),
    ) -> None:
        self.learners = learners
        self.execution = execution
        self.recorded = recorded
        self.streams = streams
        self.pattern = next(iter(learners.values()))
        self.device = next(iter(self.pattern.parameters.values())).device
        is_captured = is_capturable(list(self.pattern.parameters.values()))
        suits = StackedUpdate.suits(self.pattern)
        self.update = StackedUpdate(self.pattern, varied, has_kernels=not is_captured) if suits else None
        self._probes: dict[Key, Probe] = {}
        self._forms: dict[Hashable, list[Probe]] = {}  # the probes of batches that are alike but for values
        self._programs: dict[Hashable, Program] = {}
        self._earlier: dict[str, Level] = {}  # of programs, by their names
        self._differing = _differing(list(learners.values()))
        self._keep(key_of(first), seen)
        self._changed, self._stacked = seen.changed_buffers, seen.member_buffers
        self.activation_bytes = seen.activation_bytes
        self.is_compiling = execution.compile is True
        self.is_worth_compiling = True  # a step that is not traced yet
        self.num_done = 0  # steps before the window that is trained
        # The memory of captured steps, which take turns, is common to the programs; None where nothing can be captured.
        self._pool = Pool() if is_captured else None
        self._slots = Slots(self.device)
        self.chunks = weakref.WeakSet[VectorizedChunk]()
        self.is_offloaded = False
        self.measure = Measuring(self.pattern.objective, self._pool)
        self.is_measured_at_once = True  # until PyTorch turns out to be unable to batch the model's evaluation
        self.draws_numbers = False
        self._has_told_of_shapes = False
        self._note_numbers(seen)

    @property
    def stepping(self) -> Stepping:
        """What has been seen of the task, and how far the programs have come."""
        return Stepping(
            self._changed,
            self._stacked,
            self.activation_bytes,
            self.is_measured_at_once,
            self._earlier | {name_of_key(key): program.standing for key, program in self._programs.items()},
            self.measure.levels,
            self.pattern.objective.owns_new,
        )

    def go_on(self, stepping: Stepping) -> None:
        """Take over what another process had seen; programs come to their levels when they are asked for."""
        self._changed, self._stacked = stepping.changed_buffers, stepping.member_buffers
        self.activation_bytes = stepping.activation_bytes
        self.is_measured_at_once = stepping.is_measured_at_once
        self.pattern.objective.owns_new = stepping.owns_new
        self._earlier = dict(stepping.programs)
        self.measure.go_on(stepping.measures)

    def restart(self) -> None:
        """Keep what was traced and compiled, but go through the levels as if for the first time."""
        for program in self._programs.values():
            program.restart()
        self.let_go()

    def let_go(self) -> None:
        """Give back the memory of captured steps, and that in which chunks train."""
        for program in self._programs.values():
            program.let_go()
        self.measure.let_go()
        self._slots.clear()
        if self._pool is not None:
            self._pool.renew()

    def slot(self, state: Sequence[Tensor]) -> Slot | None:
        """Where a chunk of such a flat state trains; None where that is in its own memory."""
        return None if self._pool is None else self._slots.of(state, self.num_done)

    @property
    def can_offload(self) -> bool:
        """Whether chunks may wait for their turn in the memory of the host: they train in a slot."""
        return self._pool is not None and self.update is not None

    def offload(self) -> None:
        """Let chunks wait on the host from now on, those that there are and those that come."""
        self.let_go()
        self.is_offloaded = True
        for chunk in self.chunks:
            chunk.offload()

    @property
    def member_bytes(self) -> int:
        """The parameters of one member, and what it keeps for its backward pass."""
        return sum(p.nbytes for p in self.pattern.parameters.values()) + self.activation_bytes

    @property
    def footprint(self) -> Footprint:
        """What the members take."""
        return Footprint.of(self.learners, self.update, self._changed, self.activation_bytes)

    @property
    def in_doubt_from(self) -> int | None:
        """The step from which on numbers may be wrong, because a later check of a traced step failed."""
        found = [p.in_doubt_from for p in self._programs.values() if p.in_doubt_from is not None]
        return min(found, default=None)

    @property
    def level(self) -> str:
        """How the steps were run: "compiled" or "traced" as soon as some kind of batch was, else "eager"."""
        programs = self._programs.values()
        name = "traced" if any(program.is_traced for program in programs) else "eager"
        if any(program.is_compiled for program in programs):
            name = "compiled"
        return f"{name} and captured" if any(program.is_captured for program in programs) else name

    def start(self, seed: int) -> MemberState:
        """The state of a member of this seed before its first step."""
        learner = self.learners[seed]
        names = self._changed | self._differing
        buffers = {name: tensor for name, tensor in learner.constants.items() if name in names}
        parameters = {name: p.detach() for name, p in learner.parameters.items()}
        return MemberState.start(parameters, buffers, self.execution.precision)

    def load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "VectorizedChunk":
        """Stack members into a chunk."""
        try:
            return self._load(members, seeds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = OutOfMemory()
            failure.__cause__ = error
        let_go_of(failure)
        raise failure

    def _load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "VectorizedChunk":
        member_buffers = self._stacked if len(set(seeds)) == 1 else self._changed | self._differing
        place = torch.device("cpu") if self.is_offloaded else self.device
        # Members of a seed may begin as one object, which comes but once.
        there = {id(member): member.on(place) for member in members if member.fate.alive.device != place}
        members = [there.get(id(member), member) for member in members]
        ensemble = Ensemble.stack(members, seeds, member_buffers)
        states = [member.optimizer for member in members]
        if self.update is None:
            return VectorizedChunk(self, ensemble, MemberOptimizers(self.pattern, ensemble.parameters, states))
        ensemble.optimizer = self.update.stack(ensemble.parameters, states)
        return VectorizedChunk(self, ensemble, None)

    def probe(self, batch: Batch, key: Key, seed: int) -> Probe:
        """See what an ordinary pass over a batch of this kind does.

        Raises:
            Unmappable: it does what cannot be batched.
        """
        if key in self._probes:
            return self._probes[key]
        alike = self._forms.get(key.form, [])
        if len(alike) >= _MAX_GRAPHS:  # values such as the names of files, which differ in every batch
            return alike[-1]
        seen = probe(self.learners[seed], batch, seed, self.streams)
        if seen.obstacle:
            raise Unmappable(seen.obstacle)
        if not (seen.changed_buffers <= self._changed and seen.member_buffers <= self._stacked):
            raise Unmappable("some batches change buffers that the first batch leaves alone")
        self._keep(key, seen)
        self._note_numbers(seen)
        return seen

    def give_own_tensors(self, error: BaseException | None) -> bool:
        """Give each member the tensors that a pass makes, if it has failed for sharing them; say whether it had."""
        objective = self.pattern.objective
        if objective.owns_new or not is_shared_write(error):
            return False
        objective.owns_new = True
        # A program that could not be traced for the same reason would stay eager.
        self._programs = {key: program for key, program in self._programs.items() if program.is_traced}
        return True

    def foresee(self, error: BaseException, batch: Batch, seed: int) -> bool:
        """See what an evaluation draws, if it has failed for not being foreseen; say whether that is known now.

        Args:
            error: with which it failed.
            batch: of the seed.
            seed: whose.
        """
        is_of_draws = isinstance(error, UnforeseenDrawError)
        return is_of_draws and self.measure.foresee(self.learners[seed], batch, seed, self.streams)

    def _note_numbers(self, seen: Probe) -> None:
        """Note that a step draws numbers, which no graph can hold: it stays eager, and draws once for all members."""
        self.draws_numbers |= seen.draws_numbers

    def _keep(self, key: Key, seen: Probe) -> None:
        alike = self._forms.get(key.form, [])
        _remember(self._probes, key, seen)
        _remember(self._forms, key.form, [*alike, seen])

    def _may_trace(self) -> bool:
        """Whether there may be another graph; say so, once, where there may not."""
        may_trace = sum(program.is_traced for program in self._programs.values()) < _MAX_GRAPHS
        if not may_trace and not self._has_told_of_shapes:
            self._has_told_of_shapes = True
            warn_of_stumble(
                f"Batches come in more than {_MAX_GRAPHS} shapes. A step is traced for each; those of further shapes "
                "are not, and take several times as long. Pad to a few lengths, as by a collator's "
                "`pad_to_multiple_of=64`."
            )
        return may_trace

    def program(
        self, ensemble: Ensemble, inputs: Inputs, kinds: tuple[Key, ...], num_seeds: int, *, is_recurring: bool
    ) -> Program:
        """The program for an ensemble of this size and batches of these kinds, stacked where seeds are several."""
        key = (len(ensemble), ensemble.member_buffers, num_seeds, kinds)
        if key in self._programs:
            self._programs[key].is_compiling = self.is_compiling
            return self._programs[key]
        is_plain = all(kind.is_plain for kind in kinds)
        step = Step(
            self.pattern.objective,
            self.update,
            max_grad_norm=self.execution.max_grad_norm,
            recorded=self.recorded,
        )
        program = Program(
            step,
            ensemble,
            inputs,
            may_trace=self._may_trace if is_plain and not self.draws_numbers else lambda: False,
            is_recurring=is_recurring,
            is_compilable=self.is_worth_compiling,
            pool=self._pool,
        )
        if is_plain:
            _remember(self._programs, key, program)
        else:
            program.num_ahead = 1  # it has what this batch has besides tensors
        if self._earlier and (level := self._earlier.get(name_of_key(key))) is not None:
            program.go_on(level, pytree.tree_leaves(ensemble.tensors), inputs)
        program.is_compiling = self.is_compiling
        return program


def _remember(kinds: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what was learned about a kind of batch, and forget the oldest when there are very many."""
    while len(kinds) >= _MAX_KINDS:
        del kinds[next(iter(kinds))]
    kinds[key] = value


def _differing(learners: Sequence[Learner]) -> frozenset[str]:
    """The names of what is not trained and yet not the same for all seeds."""
    constants = [learner.constants for learner in learners]
    return frozenset(
        name
        for name, tensor in constants[0].items()
        if any(not is_same(tensor, others[name]) for others in constants[1:])
    )
