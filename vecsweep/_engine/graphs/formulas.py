"""A pass over a traced step: activations that people write out become the one operator that PyTorch has for them.

GPT-2's GELU is eight operators, and eleven in the backward pass, each of which reads and writes a tensor of the widest
layer. A formula is found as autograd has traced it, forward and backward by themselves. What it computes is the same
but for rounding.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from vecsweep._engine.graphs.graph import simplify_
from vecsweep.kernels._trace import trace

_RTOL = 1e-7  # of constants, which some write with ten digits
_EXACT = (torch.float32, torch.float64)  # whose rounding between the operators of a formula does not matter
_aten: Any = torch.ops.aten


class _Activation(NamedTuple):
    """A function of one tensor, as people write it, and PyTorch's for it."""

    formula: Callable[[Tensor], Tensor]
    within: Any
    """An operator that is in it."""
    forward: Any
    backward: Any
    """From (gradient, input)."""
    options: dict[str, Any]


def _gelu_of_gpt(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * math.sqrt(2.0 / math.pi) * (1.0 + 0.044715 * x * x)))


def _gelu_by_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


_BY_TANH = (_aten.tanh.default, _aten.gelu.default, _aten.gelu_backward.default, {"approximate": "tanh"})
_ACTIVATIONS = (
    _Activation(_gelu_of_gpt, *_BY_TANH),
    _Activation(_gelu_fast, *_BY_TANH),
    _Activation(_gelu_by_erf, _aten.erf.default, _aten.gelu.default, _aten.gelu_backward.default, {}),
    _Activation(_swish, _aten.sigmoid.default, _aten.silu.default, _aten.silu_backward.default, {}),
)


def recognize_activations_(graph: Graph) -> None:
    """Put PyTorch's operators in the place of formulas."""
    operators = {node.target for node in graph.nodes}
    for activation in _ACTIVATIONS:
        if activation.within in operators:
            of_input, of_gradient, forward, backward = _traced(activation.formula)
            _replace_(graph, backward, (of_gradient, of_input), activation.backward, activation.options)
            _replace_(graph, forward, (of_input,), activation.forward, activation.options)
    graph.eliminate_dead_code()


@cache
def _traced(formula: Callable[[Tensor], Tensor]) -> tuple[Node, Node, Node, Node]:
    """The nodes of its input and of the gradient of its result, and those of its result and the input's gradient."""

    def both(x: Tensor, grad: Tensor) -> list[Tensor]:
        y = formula(x)
        return [y, *torch.autograd.grad(y, x, grad)]

    with torch.inference_mode(False), torch.enable_grad():  # whoever asks first may be evaluating
        graph = trace(both, [torch.ones(1, device="cpu", requires_grad=True), torch.ones(1, device="cpu")]).graph
    simplify_(graph)
    of_input, of_gradient = (node for node in graph.nodes if node.op == "placeholder")
    forward, backward = graph.output_node().all_input_nodes
    return of_input, of_gradient, forward, backward


def _replace_(graph: Graph, pattern: Node, inputs: tuple[Node, ...], operator: Any, options: dict[str, Any]) -> None:
    """Put an operator of its inputs in the place of all that is computed as a pattern is."""
    for node in list(graph.nodes):
        found: dict[Node, Node] = {}
        if not _is_like(node, pattern, found):
            continue
        own = [found[source] for source in inputs]
        outlines = [(value.shape, value.dtype) for each in (node, *own) if (value := each.meta.get("val")) is not None]
        if len(set(outlines)) == 1 and len(outlines) == 1 + len(own) and outlines[0][1] in _EXACT:
            with graph.inserting_before(node):
                activation = graph.call_function(operator, tuple(own), options)
            activation.meta = node.meta
            node.replace_all_uses_with(activation)


def _is_like(value: Any, pattern: Any, found: dict[Node, Node]) -> bool:
    """Whether a value is computed as a pattern is, of the same inputs wherever the pattern names them.

    Args:
        value: a node, or an argument of one.
        pattern: likewise.
        found: what nodes of the pattern stand for; added to.
    """
    if not isinstance(pattern, Node) or not isinstance(value, Node):
        are_numbers = isinstance(value, int | float) and isinstance(pattern, int | float)
        return are_numbers and math.isclose(value, pattern, rel_tol=_RTOL)
    if pattern in found or pattern.op == "placeholder":
        return found.setdefault(pattern, value) is value
    is_same = value.target is pattern.target and len(value.args) == len(pattern.args) and value.kwargs == pattern.kwargs
    if not is_same or not all(_is_like(a, b, found) for a, b in zip(value.args, pattern.args, strict=True)):
        return False
    found[pattern] = value
    return True
