"""The last pass over a step's code: operators by PyTorch's Python functions, which are called in less time.

`torch.ops.aten.add.Tensor` goes through Python and reads the operator's schema at each call, `torch.add` through code
that was generated for it: of the 5 us that an operator of small tensors takes, 1 less. What is computed is the same: a
function is taken that was seen to come down to the operator and to nothing else.
"""

import types
from collections.abc import Hashable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

_GENERATED = (types.BuiltinFunctionType, types.MethodDescriptorType)  # as opposed to what PyTorch has in Python

_SEEN: dict[Hashable, Any] = {}  # by operator and kinds of arguments, its function; None where there is none


def call_directly_(graph: Graph) -> None:
    """Call operators by their Python functions, where there are such.

    Args:
        graph: that is run and not looked at any more.
    """
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and _is_of_tensors(node.target):
            key = node.target, _kind_of(node.args), tuple((k, _kind_of(v)) for k, v in node.kwargs.items())
            if key not in _SEEN and all("val" in source.meta for source in node.all_input_nodes):
                _SEEN[key] = _function_for(node)
            node.target = _SEEN.get(key) or node.target


def _kind_of(argument: Any) -> Any:  # mypy takes no class for hashable
    """What kind of argument it is; of a list also those in it, for some functions take lists of tensors and no None."""
    return (list, *map(_kind_of, argument)) if isinstance(argument, list | tuple) else type(argument)


def _is_of_tensors(op: torch._ops.OpOverload) -> bool:
    """Whether an operator computes; a function that makes tensors heeds a default device, and autograd."""
    return op.namespace == "aten" and all(argument.name != "pin_memory" for argument in op._schema.arguments)


def _function_for(node: Node) -> Any:
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    candidates = (getattr(place, name, None) for place in (torch, torch.Tensor))
    found = (function for function in candidates if isinstance(function, _GENERATED))
    return next((function for function in found if _is_called_by(function, node)), None)


def _is_called_by(function: Any, node: Node) -> bool:
    """Whether a function, called as an operator is, calls the operator: tried on tensors without data."""
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda x: x.meta["val"] if isinstance(x, Node) else x)
    with torch.no_grad(), _Calls() as calls:
        try:
            function(*args, **kwargs)
        except (TypeError, RuntimeError):  # it takes other arguments, or what they are decides what it does
            return False
    return calls.made == [node.target]


class _Calls(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and note it."""
        self.made.append(func)
        return func(*args, **(kwargs or {}))
