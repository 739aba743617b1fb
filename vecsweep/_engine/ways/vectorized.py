"""All members in one pass: stacked parameters, one program for each kind of batch.

Not here: the mathematics of a step (`step.py`), how it is run fast (`program.py`), and the order of windows and chunks
and what becomes of members that diverged (`run.py`).
"""

import copy
import gc
import os
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vecsweep import kernels
from vecsweep._engine.caller.memory import is_out_of_memory, make_room
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.batches import Key, key_of, stack
from vecsweep._engine.graphs.capture import Pool, Slots, copy_all_, is_capturable, upload
from vecsweep._engine.graphs.levels import Level, Stepping, name_of_key
from vecsweep._engine.members.ensemble import Ensemble, MemberState, OptimizerState
from vecsweep._engine.members.learner import Learner, is_same
from vecsweep._engine.members.measure import Measuring, measure_one
from vecsweep._engine.members.objective import Objective
from vecsweep._engine.members.optimizer import MemberOptimizers, StackedUpdate
from vecsweep._engine.members.probe import Probe, probe
from vecsweep._engine.members.step import Step, norm_of
from vecsweep._engine.ways.contract import Curve, OutOfMemory, SeedsDiffer, StepBatches, Unmappable, Window
from vecsweep._engine.ways.program import Inputs, Program
from vecsweep._errors import warn_of_fallback, warn_of_stumble
from vecsweep._types import Batch, Hyper
from vecsweep.execution import Execution
from vecsweep.kernels.rules import Draw

_FOLDERS = (Path(torch.__file__).parent, Path(str(kernels.__file__)).parent, Path(__file__).parents[1])
_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
_MAX_KINDS = 256  # of batches that are remembered
_MAX_GRAPHS = 16  # loaders that never repeat a shape would trace for ever
_RECURRING = 3  # steps of a window whose batches are of one kind, from which on the first is traced


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
        self.update = StackedUpdate(self.pattern, varied) if StackedUpdate.suits(self.pattern) else None
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
        is_captured = is_capturable(list(self.pattern.parameters.values()))
        self._pool = Pool() if is_captured else None
        self._slots = Slots()
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
        )

    def go_on(self, stepping: Stepping) -> None:
        """Take over what another process had seen; programs come to their levels when they are asked for."""
        self._changed, self._stacked = stepping.changed_buffers, stepping.member_buffers
        self.activation_bytes = stepping.activation_bytes
        self.is_measured_at_once = stepping.is_measured_at_once
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

    def slot(self, state: Sequence[Tensor]) -> list[Tensor] | None:
        """Copy a chunk's flat state to where it trains; None where that is its own memory."""
        return None if self._pool is None else self._slots.take(state, self.num_done)

    @property
    def member_bytes(self) -> int:
        """The parameters of one member, and what it keeps for its backward pass."""
        return sum(p.nbytes for p in self.pattern.parameters.values()) + self.activation_bytes

    def num_that_fit(self, num_members: int, free_bytes: int) -> int:
        """How many members may be stepped together, where all of them wait for their turn in the same memory.

        Args:
            num_members: of the run.
            free_bytes: of memory.
        """
        parameters = self.pattern.parameters
        own = sum(p.nbytes for p in parameters.values())
        of_optimizer = self.update.state_bytes(parameters) if self.update else own
        buffers = sum(self.pattern.constants[name].nbytes for name in self._changed)
        state = own + of_optimizer + buffers
        # Of those that are stepped: the state that they work on and its successor, gradients, what the update is made
        # of, and activations, each of which has a gradient for a while.
        each = 2 * state + 4 * own + 2 * self.activation_bytes
        size = num_members
        while size > 1 and num_members * state + size * each > free_bytes:
            size = -(-size // 2)
        return size

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
        _let_go(failure)
        raise failure

    def _load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "VectorizedChunk":
        member_buffers = self._stacked if len(set(seeds)) == 1 else self._changed | self._differing
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

    def _note_numbers(self, seen: Probe) -> None:
        """Note that a step draws numbers, which no graph can hold: it stays eager, and draws once for all members."""
        if seen.draws_numbers:
            self.draws_numbers, self.is_measured_at_once = True, False

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
        if self._earlier and (level := self._earlier.get(name_of_key(key))) is not None:
            program.go_on(level, pytree.tree_leaves(ensemble.tensors), inputs)
            program.is_compiling = self.is_compiling
        return program


class VectorizedChunk:
    """Members that are stepped at once; see `contract.Chunk`.

    Args:
        engine: what is common to the chunks of a run.
        ensemble: the members.
        optimizers: their own, where there is no stacked update.
    """

    def __init__(self, engine: Vectorized, ensemble: Ensemble, optimizers: MemberOptimizers | None) -> None:
        self._engine = engine
        self._ensemble = ensemble
        self._optimizers = optimizers
        self._seeds = list(dict.fromkeys(ensemble.seeds))  # in the order of the seed axis of stacked batches
        self._seed_index: Tensor | None = None  # [member], a member's place on it; None where all are of one seed
        if len(self._seeds) > 1:
            places = {seed: place for place, seed in enumerate(self._seeds)}
            device = ensemble.fate.alive.device
            self._seed_index = upload(np.array([places[seed] for seed in ensemble.seeds]), device)
        self._saved: list[Tensor] | None = None
        self._saved_optimizers: list[OptimizerState] | None = None

    def __len__(self) -> int:
        return len(self._ensemble)

    def run(self, window: Window, hyper: Hyper) -> Curve:
        """Train through a window."""
        if self._seed_index is not None:
            self._check_seeds_agree(window)
        try:
            state = self._begin()
            with warnings.catch_warnings():
                # vmap's warning that it runs an operator member by member; nothing that the caller could mend.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                curve = self._run(state, window, hyper)
            self._commit(state)
        except Exception as error:
            failure = OutOfMemory() if is_out_of_memory(error) else Unmappable(_explain(error))
            failure.__cause__ = error
        else:
            self._saved = self._saved_optimizers = None  # a chunk that waits for its turn holds its state, and no more
            return curve
        # Not before here: as long as an error is being handled, the activations of the step that failed stay.
        self._engine.let_go()
        _let_go(failure)
        self._go_back()
        try:
            raise failure
        finally:
            del failure  # or it would hold this frame, which holds it, and with them all members, until Python looks

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the members at the weights that they are evaluated at; no stacked update has such."""
        return nullcontext() if self._optimizers is None else self._optimizers.evaluating()

    def measure(self, batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch, in eval mode and without gradients."""
        own = [batches[seed] for seed in self._seeds]
        is_common = all(batch is own[0] for batch in own)
        if self._engine.is_measured_at_once and (is_common or len({key_of(batch) for batch in own}) == 1):
            batch, seed_index = (own[0], None) if is_common else (stack(own), self._seed_index)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                    return self._engine.measure(self._ensemble, batch, seed_index)
            except Exception as error:
                if not is_out_of_memory(error):
                    reason, measured = _explain(error), self._measure_each(batches)  # or raises the task's own error
                    self._engine.is_measured_at_once = False
                    warn_of_fallback(
                        "The members are evaluated one after another, because PyTorch cannot batch their loss and "
                        f"metrics in eval mode: {reason}. The result is the same."
                    )
                    return measured
        return self._measure_each(batches)

    def _measure_each(self, batches: Mapping[int, Batch]) -> Tensor:
        """Evaluate one member after another."""
        rows, streams, ensemble = [], self._engine.streams, self._ensemble
        for i, seed in enumerate(ensemble.seeds):
            own = ensemble.member_buffers
            parameters = {name: p[i] for name, p in ensemble.parameters.items()}
            buffers = {name: b[i] if name in own else b for name, b in ensemble.buffers.items()}
            streams.restart("evaluation", seed)
            rows.append(measure_one(self._engine.learners[seed], parameters, buffers, batches[seed]))
        return torch.stack(rows, dim=1)

    def members(self, positions: Sequence[int], *, is_last: bool = False) -> list[MemberState]:
        """Take the states of some members."""
        states = [self._ensemble.member(i) for i in positions]
        if self._optimizers is not None:
            optimizers = map(self._optimizers.state, positions)
            states = [replace(state, optimizer=own) for state, own in zip(states, optimizers, strict=True)]
        return states if is_last else [state.copy() for state in states]

    def copies(self, copy: Callable[[Tensor], Tensor]) -> list[MemberState]:
        """Copy the states of all members to the host: stacked, because each transfer from a GPU waits for it."""
        if self._optimizers is not None:
            return [state.mapped(copy) for state in self.members(range(len(self)), is_last=True)]
        copied = pytree.tree_map(copy, self._ensemble.tensors)
        ensemble = self._ensemble.with_tensors(copied)
        return [ensemble.member(i) for i in range(len(self))]

    def select(self, keep: Sequence[int]) -> "VectorizedChunk":
        """Take some members out."""
        seeds = [self._ensemble.seeds[i] for i in keep]
        if self._optimizers is not None or len(set(seeds)) != len(self._seeds):
            return self._engine.load(self.members(keep, is_last=True), seeds)  # which copies
        return VectorizedChunk(self._engine, self._ensemble.select(keep), None)

    def _begin(self) -> list[Tensor]:
        """The flat state to train on: a slot, or, where the chunk has none, its own, of which a copy is kept."""
        own = pytree.tree_leaves(self._ensemble.tensors)
        if self._optimizers is None and (slot := self._engine.slot(own)) is not None:
            return slot
        self._saved = [tensor.clone() for tensor in own]
        if self._optimizers is not None:
            self._saved_optimizers = [copy.deepcopy(self._optimizers.state(i)) for i in range(len(self))]
        return own

    def _commit(self, state: Sequence[Tensor]) -> None:
        """Take over the state that a window has led to."""
        if self._saved is None:
            copy_all_(pytree.tree_leaves(self._ensemble.tensors), state)

    def _go_back(self) -> None:
        """Undo the steps since the snapshot, and give its memory back."""
        if self._saved is not None:
            torch._foreach_copy_(pytree.tree_leaves(self._ensemble.tensors), self._saved)
        if self._saved_optimizers is not None:
            parameters = self._ensemble.parameters
            self._optimizers = MemberOptimizers(self._engine.pattern, parameters, self._saved_optimizers)
        self._saved = self._saved_optimizers = None

    def _run(self, state: Sequence[Tensor], window: Window, hyper: Hyper) -> Curve:
        device = self._ensemble.fate.alive.device
        # In one transfer, and contiguous, because compiled code takes strides for granted.
        rows = upload(np.array(list(hyper.values()), order="C"), device)  # [name, step, member]
        losses = torch.empty(len(window), len(self), dtype=torch.float64, device=device)
        alive = torch.empty(len(window), len(self), dtype=torch.bool, device=device)
        norms = {name: torch.empty_like(losses) for name in self._engine.recorded}
        all_kinds = [tuple(key_of(batch) for batch in step_batches[self._seeds[0]]) for step_batches in window]
        recurring = {kinds for kinds, num in Counter(all_kinds).items() if num >= _RECURRING}
        t = 0
        while t < len(window):
            kinds, steps = all_kinds[t], [self._inputs(window[t], all_kinds[t], hyper, rows[:, t])]
            take_steps = self._engine.program(
                self._ensemble, steps[0], kinds, len(self._seeds), is_recurring=kinds in recurring
            )
            for k in range(t + 1, min(len(window), t + take_steps.num_ahead)):
                if all_kinds[k] != kinds:
                    break
                steps.append(self._inputs(window[k], kinds, hyper, rows[:, k]))
            span = slice(t, t + len(steps))
            losses[span], alive[span], is_stepped, found, grads = take_steps(state, steps, self._engine.num_done + t)
            if self._optimizers is not None:
                own_rows = {name: values[t].tolist() for name, values in hyper.items()}
                found |= self._step_each(self._optimizers, grads, own_rows, is_stepped[0])
            for name, norm in found.items():
                norms[name][span] = norm
            t += len(steps)
        return Curve(losses, alive, norms)

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
        optimizers.step_(grads, hyper, is_stepped.tolist())
        if not is_recorded:
            return {}
        norm = norm_of({name: p - before[name] for name, p in parameters.items()}, self._ensemble.fate.ceiling)
        return {"update_norm": torch.where(is_stepped, norm, torch.nan)}

    def _inputs(self, step_batches: StepBatches, kinds: Sequence[Key], names: Iterable[str], rows: Tensor) -> Inputs:
        """What a step takes; `rows` are the hyperparameters of these names, `[name, member]`."""
        gathered = self._gather(step_batches, kinds)
        return Inputs(*gathered, self._seed_index, dict(zip(names, rows, strict=True)))

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
                kinds = {key_of(batch) for batch in of_seeds}
                if len(kinds) > 1 or not next(iter(kinds)).is_plain:
                    raise SeedsDiffer


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


def _let_go(failure: Exception) -> None:
    """Free the tensors in the frames that an error and what led to it have gone through; their lines stay known."""
    error: BaseException | None = failure
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    make_room()


def _explain(error: Exception) -> str:
    """Name what cannot be batched, the layer that it is in, and the line of the user's code that calls it."""
    stack = list(traceback.walk_tb(error.__traceback__))  # of frames and lines, the outermost first
    own = [place for place, (frame, _) in enumerate(stack) if not frame.f_code.co_filename.startswith(_LIBRARIES)]
    within = [frame.f_locals.get("self") for frame, _ in stack[own[-1] if own else 0 :]]
    layers = [layer for layer in within if isinstance(layer, nn.Module) and not isinstance(layer, Objective)]
    parts = [_reason(error)]
    if layers:
        parts.append(f"in the layer {type(layers[-1]).__name__}")
    if own:
        frame, line = stack[own[-1]]
        parts.append(f"at {frame.f_code.co_filename}:{line}")
    return ", ".join(parts)


def _reason(error: Exception) -> str:
    """Name the operator, or what else PyTorch says."""
    message = str(error).strip() or type(error).__name__
    if "data-dependent control flow" in message:
        return "data-dependent control flow, such as `if` or `while` on the values of a tensor"
    if operator := re.search(r"aten::\w+(\.\w+)?|\.item\(\)", message):
        return operator.group()
    return re.split(r"(?<=\w)[.:](?:\s|$)|\n", message.removeprefix("vmap: "))[0]
