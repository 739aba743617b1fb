"""Program: the step for one kind of batch, run first eagerly, then as a traced graph, on request compiled.

A graph is a flat list of aten operators, free of the Python of modules, vmap and autograd. It is traced when a kind of
batch comes for the second time, or for the first where it is known to come again, and checked against the eager step
when it comes next, and now and then later:
constants that the trace froze by mistake show on numbers that it was not made from. Where it is asked for, the graph is
compiled after that, and what was compiled is checked against the graph. Graphs write the new state over the old: no
step asks the system for the memory of another. On a GPU the kernels are then captured, and launched as one; from there
on it is the captured step that is checked, and against an eager step of a few members only: the memory for one of all
of them is the capture's.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vecsweep import _interrupts as interrupts
from vecsweep._engine.caller.memory import large_blocks_apart
from vecsweep._engine.data.packing import tree_flatten
from vecsweep._engine.graphs.capture import Pool, copy_all_
from vecsweep._engine.graphs.closeness import num_off, rtol_of
from vecsweep._engine.graphs.graph import CHECKED_CALLS, split_off_scalars
from vecsweep._engine.graphs.levels import Level
from vecsweep._engine.graphs.lowering import Lowered, lower
from vecsweep._engine.graphs.staging import Captures, num_ahead
from vecsweep._engine.members.ensemble import Ensemble
from vecsweep._engine.members.step import Grads, Step
from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch
from vecsweep.kernels._compile import GivenUp, compile_graph
from vecsweep.kernels._trace import try_to_trace
from vecsweep.kernels.rules import Draw
from vecsweep.kernels.updates import formulas_only

_Function = Callable[..., list[Tensor]]
_SHARE_OFF = 0.1
_LAST_CHECK_OF_STATE = 300  # calls
_CHECKED_MEMBERS = 4  # of a captured step
_MOST_AHEAD = 16  # steps


class Inputs(NamedTuple):
    """What a step takes besides the ensemble; see `Step`."""

    batches: Sequence[Batch]
    draws: Sequence[Sequence[Draw]]
    drawn: Sequence[Sequence[Tensor]]
    seed_index: Tensor | None
    hyper: Mapping[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of PyTorch's pytrees, which take longer to find them than a small step takes."""
        leaves = [leaf for batch in self.batches for leaf in tree_flatten(batch)[0]]
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        found += chain.from_iterable(self.drawn)
        if self.seed_index is not None:
            found.append(self.seed_index)
        return [*found, *self.hyper.values()]


class Outputs(NamedTuple):
    """What a program yields; see `StepResult`.

    Attributes:
        loss: `[step, member]`.
        alive: `[step, member]`.
        is_stepped: `[step, member]`.
        norms: by name, `[step, member]`.
        grads: by parameter name, of the last step.
    """

    loss: Tensor
    alive: Tensor
    is_stepped: Tensor
    norms: dict[str, Tensor]
    grads: Grads


class Program:
    """A step that makes itself faster as it is called again.

    Args:
        step: the step.
        ensemble: what the ensembles look like that it will be called with.
        inputs: what its inputs look like; all that is not a tensor in them stays as it is here.
        may_trace: asked when the step is to be traced; False keeps it eager.
        is_recurring: whether it is known to be called again, so that the first call may make the graph.
        is_compilable: whether the graph may be compiled; it is when `is_compiling` is set.
        pool: the memory of captured steps; None where nothing can be captured.

    Attributes:
        num_ahead: how many steps are worth passing at once.
    """

    def __init__(
        self,
        step: Step,
        ensemble: Ensemble,
        inputs: Inputs,
        *,
        may_trace: Callable[[], bool],
        is_recurring: bool = False,
        is_compilable: bool = True,
        pool: Pool | None = None,
    ) -> None:
        self._member_step = step
        outline = pytree.tree_map(lambda tensor: torch.empty_like(tensor, device="meta"), ensemble.tensors)
        self._ensemble = ensemble.with_tensors(outline)  # only what it looks like; the tensors may go
        state, self._state_structure = pytree.tree_flatten(ensemble.tensors)
        self._num_state = len(state)
        leaves, self._input_structure = pytree.tree_flatten(inputs)
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self._norm_names: list[str] = []
        self._grad_names: list[str] = []
        self._lowered: Lowered | None = None  # from a trace
        self._compiled: _Function | None = None
        self.is_compiling = False
        self._may_trace = may_trace
        self._is_eager = False
        self._is_recurring = is_recurring
        self._is_compilable = is_compilable
        self._num_calls = 0
        self._loss_scale = 0.0  # the largest loss that a check has seen
        self._unchecked_from: int | None = None  # the first step of the run that the graph took since the last check
        self.in_doubt_from: int | None = None  # the same, once a check has failed
        self.num_ahead = num_ahead(inputs.tensors, _MOST_AHEAD) if step.is_whole else 1
        self._captures = Captures(self._num_state, self.num_ahead, pool, is_divisible=True)

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph stands for the step."""
        return bool(self._captures) and not self._is_eager

    @property
    def is_traced(self) -> bool:
        """Whether a graph stands for the step."""
        return self._lowered is not None and not self._is_eager

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code stands for the graph."""
        return self.is_compiling and self._compiled is not None and not self._is_eager

    @property
    def standing(self) -> Level:
        """How far it has come."""
        return Level(
            self._num_calls,
            self._lowered is not None,
            self._compiled is not None,
            self._is_eager,
            self._is_compilable,
            self._loss_scale,
            self._unchecked_from,
        )

    def go_on(self, level: Level, state: Sequence[Tensor], inputs: Inputs) -> None:
        """Go to a level that another process had come to, without a step of the run.

        Args:
            level: that of a program for the same step and kind of batch.
            state: an ensemble's flat tensors; not changed.
            inputs: of the next step.
        """
        tensors = [*(tensor.clone() for tensor in state), *inputs.tensors]
        if level.is_traced and self._lowered is None and not self._is_eager and not level.is_eager:
            self._trace(tensors)
        self._num_calls = level.num_calls
        if level.is_compiled and self._lowered is not None:
            self._compile(tensors)
        self._is_eager |= level.is_eager
        self._is_compilable, self._loss_scale = level.is_compilable, level.loss_scale
        self._unchecked_from = level.unchecked_from

    def restart(self) -> None:
        """Go through the levels again, as if for the first time, so that a run does not depend on those before it."""
        self._num_calls = 0
        self.is_compiling = False
        self._unchecked_from = self.in_doubt_from = None
        self.let_go()

    def let_go(self) -> None:
        """Give the memory of captured steps back."""
        self._captures.clear()

    def __call__(self, state: Sequence[Tensor], steps: Sequence[Inputs], now: int) -> Outputs:
        """Take steps, from the run's step `now` on; an ensemble's flat tensors are overwritten with what they are then.

        One that raises leaves them between two steps.
        """
        parts, num_done = list[list[Tensor]](), 0
        while num_done < len(steps):
            own = steps[num_done : num_done + max(1, self._num_settled(state))]
            if len(own) > 1:
                self._num_calls += len(own)
                self._note_unchecked(now + num_done)
                parts.append(self._captures.repeat(self._fast, state, [inputs.tensors for inputs in own]))
            else:
                tensors = [*state, *own[0].tensors]
                parts.append([result.unsqueeze(0) for result in self._run(tensors, now + num_done)])
            num_done += len(own)
        results = parts[0] if len(parts) == 1 else [torch.cat(of_parts) for of_parts in zip(*parts, strict=True)]
        loss, alive, is_stepped, *rest = results
        num_norms = len(self._norm_names)
        norms = dict(zip(self._norm_names, rest, strict=False))
        grads = (grad[-1] for grad in rest[num_norms:])
        named = dict.fromkeys(self._ensemble.parameters) | dict(zip(self._grad_names, grads, strict=True))
        return Outputs(loss, alive, is_stepped, norms, named)

    def _num_settled(self, state: Sequence[Tensor]) -> int:
        """How many of the next steps are calls of the fastest function that there is and nothing else."""
        if not self.is_traced or self._num_calls < CHECKED_CALLS[0] or self._is_to_compile:
            return 0
        due = min((n for n in CHECKED_CALLS if n > self._num_calls), default=inf)
        return int(min(self._captures.num_at_once(state), due - self._num_calls - 1))

    @property
    def _is_to_compile(self) -> bool:
        is_next = self.is_compiling and self._compiled is None and self._is_compilable
        return is_next and not interrupts.is_due()

    def _note_unchecked(self, now: int) -> None:
        """Note a step that is taken by the graph alone."""
        # Chunks share a program and take turns, so that a later call may be an earlier step.
        self._unchecked_from = now if self._unchecked_from is None else min(self._unchecked_from, now)

    def _run(self, tensors: Sequence[Tensor], now: int) -> list[Tensor]:
        self._num_calls += 2 if self._is_recurring and self._num_calls == 0 else 1
        if self._num_calls <= 2 or (self._num_calls in CHECKED_CALLS and not self._is_eager):
            with large_blocks_apart():
                return self._run_once(tensors)
        if self._is_eager:
            return self._written(tensors, self._eager(*tensors))
        self._note_unchecked(now)
        if self._is_to_compile:
            return self._compile(tensors)
        return self._step(tensors)

    def _run_once(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Take a step in a way that is taken once, or now and then: before the graph, with it, or beside it."""
        if self._is_eager or self._num_calls == 1:
            return self._written(tensors, self._eager(*tensors))
        if self._num_calls == 2:
            return self._written(tensors, self._trace(tensors) if self._lowered is None else self._eager(*tensors))
        return self._checked(tensors)

    def _step(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Take a step, the state in place, in the fastest way that there is at this call."""
        return self._captures(self._fast, tensors)

    @property
    def _fast(self) -> _Function:
        """The fastest that there is at this call."""
        assert self._lowered is not None
        is_compiled = self.is_compiled and self._num_calls > CHECKED_CALLS[0]
        return self._compiled if is_compiled and self._compiled is not None else self._lowered.run

    def _eager(self, *tensors: Tensor, members: Sequence[int] | None = None) -> list[Tensor]:
        """Take the step, from flat tensors to flat tensors; nothing is overwritten.

        Args:
            tensors: the state and the inputs.
            members: who is to be stepped, by position; None for all.
        """
        state, rest = tensors[: self._num_state], iter(tensors[self._num_state :])
        leaves = [
            next(rest) if is_tensor else constant
            for is_tensor, constant in zip(self._is_tensor, self._constants, strict=True)
        ]
        inputs = pytree.tree_unflatten(leaves, self._input_structure)
        ensemble = self._ensemble.with_tensors(pytree.tree_unflatten(list(state), self._state_structure))
        if members is not None:
            ensemble, inputs = ensemble.select(members), _inputs_of(inputs, members)
        result = self._member_step(ensemble, *inputs)
        grads = {name: grad for name, grad in result.grads.items() if grad is not None}
        self._norm_names, self._grad_names = list(result.norms), list(grads)
        new_state = pytree.tree_leaves(result.ensemble.tensors)
        alive = result.ensemble.fate.alive
        return [*new_state, result.loss, alive, result.is_stepped, *result.norms.values(), *grads.values()]

    def _written(self, tensors: Sequence[Tensor], results: list[Tensor]) -> list[Tensor]:
        """Write a new state over the old; return the rest."""
        with torch.no_grad():
            for old, new in zip(tensors, results[: self._num_state], strict=False):
                old.copy_(new)
        return results[self._num_state :]

    def _trace(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Trace the step, and return what it computed meanwhile."""
        traced = try_to_trace(self._eager, tensors) if self._may_trace() else None
        if traced is None:  # the error is gone here, and with it what its step had computed
            self._is_eager = True
            return self._eager(*tensors)
        self._lowered = lower(traced, len(self._ensemble), self._num_state)
        return traced.results

    def _compile(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compile the graph, and compare what it computes with the graph; keep the graph when that fails."""
        assert self._lowered is not None
        self._is_compilable = False
        parts = split_off_scalars(self._formulas(tensors).in_place(self._num_state), len(self._ensemble))
        with torch.no_grad():
            expected = self._lowered.pure().forward(*tensors)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what the compiler says of its own parts is not for the caller
                    compiled = compile_graph(parts, is_wanted=lambda: not interrupts.is_due())
                    results = compiled(*tensors)
            except GivenUp:  # on Ctrl-C: whoever goes on from the window's beginning comes here again
                self._is_compilable = True
                self.restart()
                raise interrupts.Stop from None
            except Exception as error:
                why = str(error).strip().splitlines()[0]
                warn_of_fallback(f"The step cannot be compiled here, and runs uncompiled: {why}")
                return self._written(tensors, expected)
        if not self._is_close(tensors, results, expected):
            warn_of_fallback("The compiled step gives other numbers than the traced one, which is used on.")
            return self._written(tensors, expected)
        self._compiled = compiled
        self._captures.clear()  # of the graph
        return results

    def _formulas(self, tensors: Sequence[Tensor]) -> Lowered:
        """The graph with formulas in the place of kernels, whose operators a compiler fuses with the others."""
        assert self._lowered is not None
        if not self._lowered.has_kernels:
            return self._lowered
        with formulas_only():
            traced = try_to_trace(self._eager, tensors)
        return self._lowered if traced is None else lower(traced, len(self._ensemble), self._num_state)

    def _checked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compare what the graph computes with the eager step; give the graph up when they differ."""
        assert self._lowered is not None
        state, members, before = tensors[: self._num_state], None, list[Tensor]()
        if self._captures:
            num_members = len(self._ensemble)
            members = sorted({k * (num_members - 1) // (_CHECKED_MEMBERS - 1) for k in range(_CHECKED_MEMBERS)})
            before = [tensor.clone() for tensor in state]
        expected = self._eager(*tensors, members=members)
        results = self._step(tensors)
        if members is None:
            is_close = self._is_close(state, results, expected)
        else:
            is_close = self._is_close(self._state_of(state, members), [r[members] for r in results], expected)
        if is_close:
            self._unchecked_from = None
            return results
        self.in_doubt_from = self._unchecked_from
        doubt = ""
        if self.in_doubt_from is not None:
            doubt = f"What it gave since step {self.in_doubt_from} is in doubt, and so is the result from there on. "
        warn_of_fallback(
            "The traced step gives other numbers than the eager one, so the model's loss must depend on more than its "
            f"parameters, its buffers and the batch. {doubt}The sweep goes on without tracing."
        )
        self._is_eager = True
        if members is not None:
            self.let_go()
            copy_all_(state, before)
            expected = self._eager(*tensors)
        return self._written(tensors, expected)

    def _state_of(self, state: Sequence[Tensor], members: Sequence[int]) -> list[Tensor]:
        """The flat state of some members."""
        ensemble = self._ensemble.with_tensors(pytree.tree_unflatten(list(state), self._state_structure))
        return pytree.tree_leaves(ensemble.select(members).tensors)

    def _is_close(self, state: Sequence[Tensor], rest: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether two runs of the step gave the same but for rounding.

        The losses must agree, and most of the new state: some of it may be rounding and nothing else, such as the
        gradient of a bias before a batch norm, which Adam scales up to a whole step. Late in a run a model may have
        converged: then its gradients are rounding alone, and its losses small differences of large numbers.
        """
        assert self._lowered is not None
        rtol = rtol_of(self._lowered.dtypes, state[0].device)
        loss = expected[self._num_state].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self._loss_scale = max(self._loss_scale, float(loss.abs().max()))
        are_losses_off = any(
            num_off(a, b, rtol, self._loss_scale) for a, b in zip(rest[:3], expected[self._num_state :], strict=False)
        )
        if are_losses_off or self._num_calls > _LAST_CHECK_OF_STATE:
            return not are_losses_off
        new = list(zip(state, expected[: self._num_state], strict=False))
        return sum(num_off(a, b, rtol) for a, b in new) <= _SHARE_OFF * sum(b.numel() for _, b in new)


def _inputs_of(inputs: Inputs, members: Sequence[int]) -> Inputs:
    """What some members take."""
    index = inputs.seed_index
    own_hyper = {name: of_members[members] for name, of_members in inputs.hyper.items()}
    return inputs._replace(seed_index=None if index is None else index[members], hyper=own_hyper)
