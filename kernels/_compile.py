"""The compile policy, in one place: whether a traced step is worth compiling, and how it is compiled.

Compiling takes seconds, and what it saves is memory traffic: it fuses elementwise operators, the update above all, and
leaves matrix products and convolutions as they are. Both are estimated from the graph alone, so that the same run
decides alike each time.

Reference:
    The estimates were fitted to bench/bench_sweep.py on two cores (torch 2.13): 30 to 45 ms to compile an operator,
    and from a third to two thirds of the elementwise traffic saved.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

_START_S = 2.0  # to compile anything
_NODE_S = 0.04  # to compile one more operator
_BYTES_PER_S = 10e9  # of results that the operators of a traced step write and read
_SAVED = 0.5  # of that traffic


def is_worth_compiling(graph: GraphModule, num_calls: int) -> bool:
    """Say whether compiling a step saves more time over the calls to come than it takes.

    Args:
        graph: the traced step, with the shapes of its results as make_fx notes them.
        num_calls: how often it will still be called.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    traffic = sum(2 * _num_bytes(node.meta.get("val")) for node in nodes)
    return num_calls * _SAVED * traffic / _BYTES_PER_S > _START_S + _NODE_S * len(nodes)


def compile_graph(graph: GraphModule) -> Callable[..., list[Tensor]]:
    """Hand a traced step to Inductor; it is compiled at the first call."""
    compiled: Callable[..., list[Tensor]] = torch.compile(graph.forward, fullgraph=True, dynamic=False)
    return compiled


def _num_bytes(value: object) -> int:
    """The memory of an operator's result, in bytes; a view of another's counts too."""
    return math.prod(value.shape) * value.element_size() if isinstance(value, Tensor) else 0
