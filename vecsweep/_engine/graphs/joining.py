"""A pass over a traced step: what is computed of the counters of each parameter is computed for all of them at once.

An optimizer that corrects for its first steps computes some ten numbers a member from the count of each parameter. As
operators of their own these would be most of what a step of a model with many parameters launches.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from vecsweep._engine.graphs.graph import frozen, is_of_inputs, is_pure, written_nodes

_FEWEST = 3  # that are worth it
_STACK = torch.ops.aten.stack.default
_SELECT = torch.ops.aten.select.int
_COPY = torch.ops.aten.copy_.default
_COPY_ALL = torch.ops.aten._foreach_copy_.default
_TO_COPY = torch.ops.aten._to_copy.default


def join_alike_(graph: Graph, num_members: int) -> None:
    """Compute by one operator what several compute of numbers `[member]`, each of other ones; bit for bit the same.

    Args:
        graph: a traced step.
        num_members: how many members it steps.
    """
    kinds = _kinds_of(graph, num_members)
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    rows: dict[Node, tuple[Node, int]] = {}  # where the numbers of a node are: in which stack, and in which row
    for alike in kinds:
        if len(alike) < _FEWEST:
            for node in alike:  # of which others may be made that now stand before it
                last.append(node)
                last = node
            continue
        first, args = alike[0], []
        operator: Any = first.target
        for own in zip(*(node.args for node in alike), strict=True):
            if isinstance(own[0], Node) and any(value is not own[0] for value in own):
                stack, last = _stacked(graph, own, rows, last)
                args.append(stack)
            else:
                args.append(own[0])
        with graph.inserting_after(last):
            last = joined = graph.call_function(operator, tuple(args), first.kwargs)
        joined.meta["val"] = _outline(first, len(alike))
        for i, node in enumerate(alike):
            with graph.inserting_after(last):
                last = row = graph.call_function(_SELECT, (joined, 0, i))
            row.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(row)
            graph.erase_node(node)
            rows[row] = (joined, i)
    graph.eliminate_dead_code()


def join_copies_(graph: Graph, num_members: int) -> None:
    """Write the numbers `[member]` of a new state over the old by one operator for each dtype."""
    kinds: dict[torch.dtype, list[Node]] = {}
    for node in graph.nodes:
        if node.target is not _COPY or not _is_numbers(node.args[0], num_members):
            continue
        # What a loss writes it may read again, and what is of inputs others may overwrite.
        if node.args[0].op == "placeholder" and not is_of_inputs(node.args[1]):
            kinds.setdefault(node.args[0].meta["val"].dtype, []).append(node)
    for copies in kinds.values():
        if len(copies) >= _FEWEST:
            with graph.inserting_before(graph.output_node()):
                graph.call_function(_COPY_ALL, ([node.args[0] for node in copies], [node.args[1] for node in copies]))
            for node in copies:
                graph.erase_node(node)


def _kinds_of(graph: Graph, num_members: int) -> list[list[Node]]:
    """Group what is computed of inputs `[member]` alone, by how; those come first of which others are made.

    Nodes that are alike do not depend on each other: what a node is made of is always made in fewer steps.
    """
    written = written_nodes(graph)
    made: dict[Node, Hashable] = {}  # how each is made of inputs, and in how many steps
    depths: dict[Node, int] = {}
    kinds: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        if node in written:
            continue
        if _is_constant(node):
            made[node], depths[node], kinds[node] = node, 0, [node]
        elif not _is_numbers(node, num_members):
            continue
        elif node.op == "placeholder":
            made[node], depths[node] = node.meta["val"].dtype, 0
        elif _is_elementwise(node) and node.all_input_nodes and made.keys() >= set(node.all_input_nodes):
            depths[node] = 1 + max(depths[source] for source in node.all_input_nodes)
            args = tuple(made[arg] if isinstance(arg, Node) else frozen(arg) for arg in node.args)
            made[node] = (node.target, args, frozen(node.kwargs))
            kinds.setdefault(made[node], []).append(node)
    return sorted(kinds.values(), key=lambda alike: depths[alike[0]])


def _is_numbers(node: Any, num_members: int) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.shape == (num_members,)


def _is_constant(node: Node) -> bool:
    """Whether an operator makes one number of nothing."""
    is_made = node.op == "call_function" and not node.all_input_nodes and is_pure(node)
    value = node.meta.get("val")
    return is_made and isinstance(value, Tensor) and value.ndim == 0


def _is_elementwise(node: Node) -> bool:
    """Whether an operator computes each number of its result of those in the same place, and does nothing else."""
    if not isinstance(node.target, torch._ops.OpOverload) or any(isinstance(v, Node) for v in node.kwargs.values()):
        return False
    is_cast = node.target is _TO_COPY and set(node.kwargs) == {"dtype"}
    return is_cast or (torch.Tag.pointwise in node.target.tags and is_pure(node, may_be_returned=True))


def _stacked(graph: Graph, own: Sequence[Node], rows: dict[Node, tuple[Node, int]], last: Node) -> tuple[Node, Node]:
    """The node that has the numbers of others as its rows, made after `last` if there is none; and the new last."""
    places = [rows.get(node) for node in own]
    if places[0] is not None and places == [(places[0][0], i) for i in range(len(places[0][0].meta["val"]))]:
        return places[0][0], last
    with graph.inserting_after(last):
        stack = graph.call_function(_STACK, (list(own),))
    stack.meta["val"] = _outline(own[0], len(own))
    return stack, stack


def _outline(node: Node, num_rows: int) -> Tensor:
    value: Tensor = node.meta["val"]
    return torch.empty((num_rows, *value.shape), dtype=value.dtype, device="meta")
