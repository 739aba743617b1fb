"""Passes over a traced step: what autograd and caution leave in it is taken out, and new state is written over the old.

A traced step takes an ensemble's tensors first and returns their successors first. It is a flat list of aten operators,
so that what may share memory with what can be read from the operators' schemas.
"""

import operator
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.fx.passes.split_module import split_module

from vecsweep.kernels.updates import FUSED

# Calls at which a graph is held against what it was traced from: constants that the trace froze by mistake show then.
CHECKED_CALLS = (3, 30, 300, 3_000, 30_000)

_CLONE = torch.ops.aten.clone.default
_COPY = torch.ops.aten.copy_.default
_TO_COPY = torch.ops.aten._to_copy.default
_VIEWS = {
    torch.ops.aten.detach.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.alias.default,
}
_BY_A_FACTOR = {torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor}


def simplify_(graph: Graph) -> None:
    """Take out what leaves a tensor as it is, copies of what nobody writes to, and what was computed before."""
    written = written_nodes(graph)
    computed: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        is_written = node in written or not written.isdisjoint(node.all_input_nodes)
        if _is_same_view(node) or (_is_same_value(node) and not is_written):
            same = node.args[0]
        elif is_pure(node) and not is_written:
            same = computed.setdefault((node.target, frozen(node.args), frozen(node.kwargs)), node)
        else:
            continue
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def fold_copies_(graph: Graph, constants: nn.Module) -> None:
    """Keep what each step would copy from one place to another, such as weights of classes from the host to a GPU.

    A copy from the host waits for the device, and cannot be captured.

    Args:
        graph: a traced step.
        constants: what it refers to; gets the copies.
    """
    written = written_nodes(graph)
    known: set[Node] = set()  # whose values are the same in each step
    for node in list(graph.nodes):
        if node.op == "get_attr" or (node.op == "call_function" and known.issuperset(node.all_input_nodes)):
            is_kept = node not in written and written.isdisjoint(node.all_input_nodes)
            if is_kept and (node.op == "get_attr" or is_pure(node)):
                known.add(node)
    moved = [node for node in graph.nodes if node in known and node.target is _TO_COPY and "device" in node.kwargs]
    for i, node in enumerate(moved):
        name = f"moved_{i}"
        setattr(constants, name, _value_of(node, constants))
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        constant.meta = node.meta
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _value_of(node: Node, constants: nn.Module) -> Any:
    """Compute what does not depend on inputs."""
    if node.op == "get_attr":
        return getattr(constants, str(node.target))
    args, kwargs = map_aggregate(
        (node.args, node.kwargs), lambda x: _value_of(x, constants) if isinstance(x, Node) else x
    )
    function: Any = node.target
    return function(*args, **kwargs)


def write_in_place(graph: Graph, num_state: int) -> Graph:
    """Make a graph that writes the new state over the old, and returns only the rest.

    Args:
        graph: a traced step; not changed.
        num_state: how many of its first inputs and outputs are the state.
    """
    graph = _copy_of(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]  # a step returns a list
    changed = [(old, new) for old, new in zip(placeholders, results[:num_state], strict=False) if new is not old]
    with graph.inserting_before(output):
        # What trades places is copied before anything is written.
        values = [graph.call_function(_CLONE, (new,)) if new.op == "placeholder" else new for _, new in changed]
        # What is returned stays as it is when the next step writes its state.
        rest = [graph.call_function(_CLONE, (r,)) if is_of_inputs(r) else r for r in results[num_state:]]
        for (old, _), value in zip(changed, values, strict=True):
            graph.call_function(_COPY, (old, value))
    output.args = (rest,)
    return graph


def is_of_inputs(node: Node) -> bool:
    """Whether a node may share the memory of what a graph is given."""
    return any(alias.op == "placeholder" for alias in aliases_of(node))


def fuse_writes_(graph: Graph) -> None:
    """Let the operators that compute the new state write it themselves, where nobody reads the old one later."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for copy in [node for node in graph.nodes if node.target is _COPY]:
        old, new = copy.args
        if old.op != "placeholder" or (out_variant := _out_variant(new)) is None or not _is_alike(old, new):
            continue
        views = set(_views_of(old)) - {old}
        last_read = max((order[user] for alias in (old, *views) for user in alias.users if user is not copy), default=0)
        is_returned = any(user.op == "output" for user in new.users)
        if last_read > order[new] or is_returned or views & set(new.all_input_nodes):
            continue
        new.target, new.kwargs = out_variant, {**new.kwargs, "out": old}
        graph.erase_node(copy)


def step_in_place_(graph: Graph) -> None:
    """Let a kernel that steps all parameters write the new state itself, where nobody reads the old one later."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    copies = {node.args[1]: node for node in graph.nodes if node.target is _COPY}
    for node in [node for node in graph.nodes if node.target in FUSED]:
        kernel = FUSED[node.target]
        results = sorted(node.users, key=lambda user: user.args[1])  # each in its place
        state = [tensor for i in kernel.written for tensor in node.args[i]]
        own = [copies.get(result) for result in results if len(result.users) == 1]
        if [copy.args[0] for copy in own if copy is not None] != state:
            continue
        readers = {reader for old in state for alias in _views_of(old) for reader in alias.users}.difference(own)
        if all(old.op == "placeholder" for old in state) and all(order[reader] <= order[node] for reader in readers):
            for gone in (*own, *results):
                graph.erase_node(gone)
            node.target = kernel.step_


def split_off_scalars(graph: GraphModule, num_members: int) -> GraphModule:
    """Put what depends on hyperparameters and counters alone into a module of its own, called first.

    A compiler that fuses elementwise operators would compute these numbers, powers among them, again for each element
    of a parameter.

    Args:
        graph: a traced step; not changed.
        num_members: how many members it steps.

    Returns:
        A module of two submodules, or of one.
    """
    early: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            is_early = _is_per_member(node.meta.get("val"), num_members)
        else:
            inputs = node.all_input_nodes
            is_early = bool(inputs) and early.issuperset(inputs) and next(_written_by(node), None) is None
        if is_early:
            early.add(node)
    return split_module(graph, graph, lambda node: 0 if node in early else 1)


def _is_per_member(value: Any, num_members: int) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64 and value.shape == (num_members,)


def _copy_of(graph: Graph) -> Graph:
    copied = Graph()
    output = copied.graph_copy(graph, {}, return_output_node=True)
    assert output is not None
    copied.output(output[0])  # type: ignore[index]  # asked to return the node, it returns a pair
    return copied


def _written_by(node: Node) -> Iterator[Node]:
    """The nodes whose memory an operator writes to."""
    for argument, value in _arguments(node):
        is_write = argument.alias_info is not None and argument.alias_info.is_write
        # The schemas of the older batch norms do not say that they write.
        is_write = is_write or (argument.name.startswith("running_") and "batch_norm" in str(node.target))
        if is_write and isinstance(value, Node):
            yield value


def written_nodes(graph: Graph) -> set[Node]:
    """The nodes whose memory is written to after they were computed, by whatever name."""
    return {alias for node in graph.nodes for target in _written_by(node) for alias in aliases_of(target)}


def _views_of(node: Node) -> Iterator[Node]:
    """A node and those that share its memory because they were made from it."""
    yield node
    for user in node.users:
        is_view = (
            any(argument.alias_info is not None and value is node for argument, value in _arguments(user))
            or user.target is operator.getitem
        )
        if is_view:
            yield from _views_of(user)


def _arguments(node: Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of an operator by its schema, with what is passed for them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for i, argument in enumerate(node.target._schema.arguments):
        yield argument, node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)


def aliases_of(node: Node) -> set[Node]:
    """All nodes that may share a node's memory."""
    pending, found = [node], set[Node]()
    while pending:
        source = pending.pop()
        made_of = [
            value
            for argument, value in _arguments(source)
            if argument.alias_info is not None and isinstance(value, Node)
        ]
        if source.target is operator.getitem:  # of an operator's results
            made_of += source.all_input_nodes
        found.update(() if made_of else _views_of(source))
        pending += made_of
    return found


def _is_same_view(node: Node) -> bool:
    """Whether a node is a view of a tensor that shows all of it as it is."""
    return node.target in _VIEWS and isinstance(node.args[0], Node) and _is_alike(node.args[0], node)


def _is_same_value(node: Node) -> bool:
    """Whether a node computes anew what it was given."""
    if any(user.op == "output" for user in node.users) or not isinstance(source := next(iter(node.args), None), Node):
        return False
    is_copy = node.target is _CLONE or (node.target in _BY_A_FACTOR and node.args[1] == 1 and not node.kwargs)
    return bool(is_copy) and _is_alike(source, node)


def is_pure(node: Node, *, may_be_returned: bool = False) -> bool:
    """Whether an operator gives the same each time that it is given the same."""
    is_returned = not may_be_returned and any(user.op == "output" for user in node.users)
    if not isinstance(node.target, torch._ops.OpOverload) or is_returned:
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags and next(_written_by(node), None) is None


def frozen(argument: Any) -> Hashable:
    """An argument as part of a key: 1 is not 1.0 there, nor True, nor is -0.0 0.0."""
    if isinstance(argument, Node):
        return argument
    if isinstance(argument, list | tuple):
        return tuple(map(frozen, argument))
    if isinstance(argument, dict):
        return tuple((name, frozen(value)) for name, value in argument.items())
    return type(argument), repr(argument)


def _is_alike(a: Node, b: Node) -> bool:
    """Whether two nodes hold tensors of the same shape, layout and dtype."""
    x, y = a.meta.get("val"), b.meta.get("val")
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return False
    return x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()


def _out_variant(node: Any) -> Callable[..., Any] | None:
    """The overload of a pointwise operator that writes its result where it is told."""
    op = getattr(node, "target", None)
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.pointwise not in op.tags or node.kwargs.get("out"):
        return None
    own = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in op.overloadpacket.overloads():
        other = getattr(op.overloadpacket, name)
        arguments = other._schema.arguments
        is_same = [(a.name, str(a.type)) for a in arguments if not a.is_out] == own
        if is_same and [a.name for a in arguments if a.is_out] == ["out"]:
            return other
    return None
