"""Lowering: from what was traced to code that writes the new state over the old, made once for the same operators.

A second sweep, a longer one or another epoch comes down to the operators of the one before. It is traced anew, because
what the caller has changed since then shows in the trace; but the passes over the graph and the making of code, which
take longer than that, are not repeated.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from vecsweep._engine.data.fingerprint import content_of
from vecsweep._engine.graphs.bindings import call_directly_
from vecsweep._engine.graphs.formulas import recognize_activations_
from vecsweep._engine.graphs.graph import fold_copies_, fuse_writes_, simplify_, step_in_place_, write_in_place
from vecsweep._engine.graphs.joining import join_alike_, join_copies_
from vecsweep.kernels._trace import Traced, code_of
from vecsweep.kernels.updates import FUSED

_MAX_KEPT = 32  # graphs
_MAX_CONSTANT_BYTES = 2**14  # of a graph that is kept: what it refers to must not outlive its model

_KEPT: OrderedDict[Hashable, "Lowered"] = OrderedDict()
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Lowered:
    """What was made of a trace.

    Attributes:
        graph: that changes nothing in place; not to be changed.
        constants: what it refers to.
        run: what it computes, but writes the new state over the old and returns the rest.
    """

    graph: Graph
    constants: nn.Module
    run: Callable[..., list[Tensor]]

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of all that is computed."""
        return {value.dtype for node in self.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)}

    @property
    def has_kernels(self) -> bool:
        """Whether members are stepped by a kernel in the place of a formula."""
        return any(node.target in FUSED for node in self.graph.nodes)

    def pure(self) -> GraphModule:
        """Make code that returns the new state and the rest."""
        return code_of(self.constants, self.graph)

    def in_place(self, num_state: int) -> GraphModule:
        """Make code that copies the new state over the old in the end, for a compiler to fuse."""
        return code_of(self.constants, write_in_place(self.graph, num_state))


def lower(traced: Traced, num_members: int = 0, num_state: int = 0) -> Lowered:
    """Make code of a trace, or give what was made of the same before.

    Args:
        traced: a step or an evaluation; changed.
        num_members: whose step it is; 0 of an evaluation.
        num_state: how many of its first inputs and outputs are the state.
    """
    key = _key_of(traced, num_members, num_state)
    with _LOCK:
        if key is not None and key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
    lowered = _lower(traced, num_members, num_state)
    if key is not None:
        with _LOCK:
            _KEPT[key] = lowered
            while len(_KEPT) > _MAX_KEPT:
                _KEPT.popitem(last=False)
    return lowered


def _lower(traced: Traced, num_members: int, num_state: int) -> Lowered:
    graph, constants = traced.graph, traced.constants
    simplify_(graph)
    recognize_activations_(graph)
    fold_copies_(graph, constants)
    join_alike_(graph, num_members)
    written = write_in_place(graph, num_state)
    step_in_place_(written)
    fuse_writes_(written)
    join_copies_(written, num_members)
    call_directly_(written)
    return Lowered(graph, constants, code_of(constants, written).forward)


def _key_of(traced: Traced, num_members: int, num_state: int) -> Hashable:
    """All that the code depends on, constants by their values; None where they are large."""
    tensors = {name: value for name, value in vars(traced.constants).items() if isinstance(value, Tensor)}
    if sum(tensor.nbytes for tensor in tensors.values()) > _MAX_CONSTANT_BYTES:
        return None
    places: dict[Node, int] = {}

    def plain(argument: Any) -> Hashable:
        if isinstance(argument, Node):
            return places[argument]
        if isinstance(argument, list | tuple):
            return tuple(map(plain, argument))
        if isinstance(argument, dict):
            return tuple((name, plain(value)) for name, value in argument.items())
        return type(argument), repr(argument)  # 1 is not 1.0 there, nor is -0.0 0.0

    nodes = []
    for i, node in enumerate(traced.graph.nodes):
        places[node] = i
        nodes.append((node.op, node.target, plain(node.args), plain(node.kwargs), _form_of(node.meta.get("val"))))
    values = tuple((name, value.device, _form_of(value), content_of(value)) for name, value in tensors.items())
    return num_members, num_state, tuple(nodes), values


def _form_of(value: Any) -> Hashable:
    return (value.dtype, value.shape, value.stride()) if isinstance(value, Tensor) else value
