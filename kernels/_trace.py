"""Trace: a function of tensors, run once, as the flat list of aten operators that it came down to.

What `torch.fx.experimental.proxy_tensor.make_fx` does, without its fake tensors and proxies. These serve symbolic
shapes and compilers; in a short sweep of a small model they took longer than all steps together.
"""

import linecache
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, graph_module
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ._compiled import compiled_run_through

_LIFT = torch.ops.aten.lift_fresh.default
_LIFT_COPY = torch.ops.aten.lift_fresh_copy.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_ASKS = {_ITEM, torch.ops.aten.equal.default, torch.ops.aten.allclose.default}  # whose results are Python's


_TRACING = ContextVar("tracing", default=False)


class DataDependentError(RuntimeError):
    """What was traced asks for a number in a tensor, on which the operators that follow may depend."""


class Traced(NamedTuple):
    """What was traced.

    Attributes:
        graph: whose nodes have in `meta["val"]` tensors without data that look like their results.
        constants: a module that has what the graph refers to, so that a GraphModule can be made of both.
        results: what the function returned.
    """

    graph: Graph
    constants: torch.nn.Module
    results: list[Tensor]

    def module(self, graph: Graph | None = None) -> GraphModule:
        """Make code of the graph, or of another that was made from it."""
        return code_of(self.constants, self.graph if graph is None else graph)


def code_of(constants: torch.nn.Module, graph: Graph) -> GraphModule:
    """Make code of a graph, and of the module that has what it refers to."""
    code = GraphModule(constants, graph)
    weakref.finalize(code, _forget_source, code.forward.__code__.co_filename).atexit = False
    return code


def _forget_source(name: str) -> None:
    """Drop the text of code that is gone, which torch.fx and Python keep for tracebacks, and for ever."""
    linecache.cache.pop(name, None)
    graph_module._loader.eval_cache.pop(name, None)


def trace(function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Traced:
    """Run a function and note its operators.

    Args:
        function: from tensors to tensors.
        tensors: what it is run on; not changed, unless it does.

    Raises:
        DataDependentError: the function asks for a number in a tensor that is not a constant.
    """
    tape = _Tape(tensors)
    token = _TRACING.set(True)
    try:
        with (
            compiled_run_through(),
            tape,
            torch.autograd.set_multithreading_enabled(False),  # else `is_tracing` is not known in a device's thread
            torch.autograd.set_detect_anomaly(False),  # to look for NaN is to ask for numbers
        ):
            results = function(*tensors)
    finally:
        _TRACING.reset(token)
    return Traced(tape.graph_of(results), tape.constants, results)


def try_to_trace(function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Traced | None:
    """Trace a function, if need be as if it was compiled; None if it cannot be."""
    for context in (nullcontext, as_if_compiled):
        try:
            with context():
                return trace(function, tensors)
        except DataDependentError:
            continue
        except Exception:  # whatever the function raises on a tape, and does not without
            return None
    return None


def is_tracing() -> bool:
    """Whether what is computed now is being traced."""
    return _TRACING.get()


@contextmanager
def as_if_compiled() -> Iterator[None]:
    """Let models take the way that they have for compilers, where their own asks for a number in a tensor."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


class _Tape(TorchDispatchMode):
    """Note each operator that reaches the dispatcher's end, below vmap and autograd, as a node of a graph."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph = Graph()
        self.constants = torch.nn.Module()
        self._nodes = WeakTensorKeyDictionary()  # by the tensor itself, for as long as anybody else needs it
        # Of tensors found outside, whose memory may change between runs, and of views of them.
        self._constant_nodes: set[Node] = set()
        self._known: set[Node] = set()  # of those made here, of nothing that could change
        for i, tensor in enumerate(tensors):
            self._note(tensor, self._graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked for, and note it."""
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # the marks of `record_function`, for which graphs have no words
            return func(*args, **kwargs)
        if func is _LIFT:  # of a tensor made of numbers, here and now: what is written to it must not stay
            self._constant(args[0], args[0].clone())
        inputs, named = map_aggregate(args, self._node_of), map_aggregate(kwargs, self._node_of)
        if func in _ASKS:
            if not all(own in self._known or own in self._constant_nodes for own in inputs if isinstance(own, Node)):
                raise DataDependentError("a number is taken out of a tensor")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        target = _LIFT_COPY if func is _LIFT else func
        # With a name and without arguments: it would make up the one, and look through the others, a tenth of a trace.
        node = self._graph.create_node("call_function", target, name=func._overloadpacket.__name__)
        node.args = inputs
        if named:
            node.kwargs = named
        is_drawn = torch.Tag.nondeterministic_seeded in func.tags
        if func is _LIFT or (self._known.issuperset(node.all_input_nodes) and not is_drawn):
            self._known.add(node)
        elif func.is_view and self._constant_nodes.issuperset(node.all_input_nodes):
            self._constant_nodes.add(node)
        elif func._schema.is_mutable:
            self._forget(node.all_input_nodes)
        self._note_all(result, node)
        return result

    def graph_of(self, results: Sequence[Tensor]) -> Graph:
        """The graph that returns these of the tensors it has seen."""
        self._graph.output(map_aggregate(list(results), self._node_of))
        return self._graph

    def _node_of(self, value: Any) -> Any:
        """The node that stands for a tensor; other values stand for themselves."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(value)
        if node is None:
            self._constant(value, value.detach())
            node = self._nodes[value]
        return node

    def _constant(self, tensor: Tensor, value: Tensor) -> None:
        """Let a tensor stand for a value in each run of the graph."""
        if value._is_zerotensor():  # without memory, as tangents are at first that nothing depends on
            value = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        name = f"constant_{len(self._constant_nodes)}"
        setattr(self.constants, name, value)
        node = self._graph.get_attr(name)
        self._constant_nodes.add(node)
        self._note(tensor, node)

    def _note_all(self, result: Any, node: Node) -> None:
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if part is not None:
                    own = self._graph.call_function(operator.getitem, (node, i))
                    if node in self._known:
                        self._known.add(own)
                    self._note_all(part, own)

    def _forget(self, touched: Sequence[Node]) -> None:
        """Take what shares memory with known tensors, to which others may be written, for unknown from here on."""
        known = self._known.intersection(touched)
        if not known:
            return
        storages = {tensor.untyped_storage()._cdata for tensor, node in self._nodes.items() if node in known}
        for tensor, node in self._nodes.items():
            if tensor.untyped_storage()._cdata in storages:
                self._known.discard(node)

    def _note(self, tensor: Tensor, node: Node) -> None:
        node.meta["val"] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        self._nodes[tensor] = node
