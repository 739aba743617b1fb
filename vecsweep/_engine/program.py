"""Program: the step for one kind of batch, run first eagerly, then as a traced graph, on request compiled.

A graph is a flat list of aten operators, free of the Python of modules, vmap and autograd. It is traced when a kind of
batch comes for the second time, and checked against the eager step when it comes for the third, and now and then later:
constants that the trace froze by mistake show on numbers that it was not made from. Where it is asked for, the graph is
compiled after that, and what was compiled is checked against the graph. Graphs write the new state over the old: no
step asks the system for the memory of another.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from vecsweep._engine.ensemble import Ensemble
from vecsweep._engine.graph import fuse_writes_, simplify_, split_off_scalars, write_in_place
from vecsweep._engine.step import Grads, Step
from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch
from vecsweep.kernels._compile import compile_graph
from vecsweep.kernels.rules import Draw

_CHECKED_CALLS = (3, 30, 300, 3_000, 30_000)
# Rounding, where operators are fused or sums reordered, by the least precise dtype that a step computes in.
_RTOL = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}


class Inputs(NamedTuple):
    """What a step takes besides the ensemble; see `Step`."""

    batches: Sequence[Batch]
    draws: Sequence[Sequence[Draw]]
    drawn: Sequence[Sequence[Tensor]]
    hyper: Mapping[str, Tensor]


class Outputs(NamedTuple):
    """What a program yields; see `StepResult`.

    Attributes:
        loss: `[member]`.
        alive: `[member]`.
        is_stepped: `[member]`.
        grads: by parameter name.
    """

    loss: Tensor
    alive: Tensor
    is_stepped: Tensor
    grads: Grads


class Program:
    """A step that makes itself faster as it is called again.

    Args:
        step: the step.
        ensemble: what the ensembles look like that it will be called with.
        inputs: what its inputs look like; all that is not a tensor in them stays as it is here.
        is_traceable: whether a graph may stand for the step; False keeps it eager.
        is_to_be_compiled: whether the graph is compiled.
    """

    def __init__(
        self,
        step: Step,
        ensemble: Ensemble,
        inputs: Inputs,
        *,
        is_traceable: bool,
        is_to_be_compiled: bool = False,
    ) -> None:
        self._step = step
        outline = pytree.tree_map(lambda tensor: torch.empty_like(tensor, device="meta"), ensemble.tensors)
        self._ensemble = ensemble.with_tensors(outline)  # only what it looks like; the tensors may go
        state, self._state_structure = pytree.tree_flatten(ensemble.tensors)
        self._num_state = len(state)
        leaves, self._input_structure = pytree.tree_flatten(inputs)
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self._grad_names: list[str] = []
        self._graph: GraphModule | None = None  # pure
        self._fast: Callable[..., list[Tensor]] | None = (
            None  # the same, but that the new state is written over the old
        )
        self._is_to_be_compiled = is_to_be_compiled
        self._is_compiled = False
        self._is_eager = not is_traceable
        self._num_calls = 0

    @property
    def is_traced(self) -> bool:
        """Whether a graph stands for the step."""
        return self._fast is not None and not self._is_eager

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code stands for the graph."""
        return self._is_compiled and not self._is_eager

    def __call__(self, state: Sequence[Tensor], inputs: Inputs) -> Outputs:
        """Take one step; an ensemble's flat tensors are overwritten with what they are after it.

        A step that raises leaves them between two steps.
        """
        tensors = [*state, *(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))]
        loss, alive, is_stepped, *grads = self._run(tensors)
        named = dict.fromkeys(self._ensemble.parameters) | dict(zip(self._grad_names, grads, strict=True))
        return Outputs(loss, alive, is_stepped, named)

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self._num_calls += 1
        if self._is_eager or self._num_calls == 1:
            return self._written(tensors, self._eager(*tensors))
        if self._fast is None:
            return self._written(tensors, self._trace(tensors))
        if self._num_calls in _CHECKED_CALLS:
            return self._checked(tensors)
        if self._is_to_be_compiled and self._num_calls > _CHECKED_CALLS[0]:
            return self._compile(tensors)
        with torch.no_grad():
            return self._fast(*tensors)

    def _eager(self, *tensors: Tensor) -> list[Tensor]:
        """Take the step, from flat tensors to flat tensors; nothing is overwritten."""
        state, rest = tensors[: self._num_state], iter(tensors[self._num_state :])
        leaves = [
            next(rest) if is_tensor else constant
            for is_tensor, constant in zip(self._is_tensor, self._constants, strict=True)
        ]
        inputs = pytree.tree_unflatten(leaves, self._input_structure)
        ensemble = self._ensemble.with_tensors(pytree.tree_unflatten(list(state), self._state_structure))
        result = self._step(ensemble, *inputs)
        grads = {name: grad for name, grad in result.grads.items() if grad is not None}
        self._grad_names = list(grads)
        new_state = pytree.tree_leaves(result.ensemble.tensors)
        return [*new_state, result.loss, result.ensemble.fate.alive, result.is_stepped, *grads.values()]

    def _written(self, tensors: Sequence[Tensor], results: list[Tensor]) -> list[Tensor]:
        """Write a new state over the old; return the rest."""
        with torch.no_grad():
            for old, new in zip(tensors, results[: self._num_state], strict=False):
                old.copy_(new)
        return results[self._num_state :]

    def _trace(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Trace the step, and return what it computed meanwhile."""
        results: list[Tensor] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            results[:] = self._eager(*tensors)
            return results

        try:
            # make_fx notes the shape of every result as a fake tensor, and makes a mode for each unless it finds one.
            with tracing(TracingContext(FakeTensorMode())):
                graph = make_fx(flat)(*tensors)
        except Exception:
            self._is_eager = True
            return self._eager(*tensors)
        simplify_(graph)
        fast = write_in_place(graph, self._num_state)
        fuse_writes_(fast)
        self._graph, self._fast = graph, fast.forward
        return results

    def _compile(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compile the graph, and compare what it computes with the graph; keep the graph when that fails."""
        assert self._graph is not None
        self._is_to_be_compiled = False
        parts = split_off_scalars(write_in_place(self._graph, self._num_state), len(self._ensemble))
        with torch.no_grad():
            expected = self._graph.forward(*tensors)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what the compiler says of its own parts is not for the caller
                    compiled = compile_graph(parts)
                    results = compiled(*tensors)
            except Exception as error:
                why = str(error).strip().splitlines()[0]
                warn_of_fallback(f"The step cannot be compiled here, and runs uncompiled: {why}")
                return self._written(tensors, expected)
        if not _are_close([*tensors[: self._num_state], *results], expected, self._graph):
            warn_of_fallback("The compiled step gives other numbers than the traced one, which is used on.")
            return self._written(tensors, expected)
        self._fast, self._is_compiled = compiled, True
        return results

    def _checked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compare what the graph computes with the eager step; give the graph up when they differ."""
        assert self._graph is not None
        assert self._fast is not None
        expected = self._eager(*tensors)
        with torch.no_grad():
            results = self._fast(*tensors)
        if _are_close([*tensors[: self._num_state], *results], expected, self._graph):
            return results
        warn_of_fallback(
            "The traced step gives other numbers than the eager one, so the model's loss must depend on more than its "
            "parameters, its buffers and the batch. The sweep goes on without tracing."
        )
        self._is_eager = True
        return self._written(tensors, expected)


def _are_close(results: Sequence[Tensor], expected: Sequence[Tensor], graph: GraphModule) -> bool:
    """Whether two runs of a graph gave the same but for rounding, relative to the largest number in each tensor."""
    dtypes = {value.dtype for node in graph.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)}
    rtol = next((rtol for dtype, rtol in _RTOL.items() if dtype in dtypes), 0.0)
    return all(_is_close(a, b, rtol) for a, b in zip(results, expected, strict=True))


def _is_close(a: Tensor, b: Tensor, rtol: float) -> bool:
    if not a.is_floating_point() or a.numel() == 0:
        return a.equal(b)
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool(((a - b).abs() <= rtol * b.abs().max()).all())
