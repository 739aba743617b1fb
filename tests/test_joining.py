import pytest
import torch
from torch.fx import GraphModule
from vecsweep.kernels._trace import trace
from vecsweep.kernels.updates import UPDATES

from vecsweep._engine.graphs.graph import simplify_, write_in_place
from vecsweep._engine.graphs.joining import join_alike_, join_copies_

ATEN = torch.ops.aten
NUM_MEMBERS = 5
LR = torch.linspace(0.1, 0.5, NUM_MEMBERS, dtype=torch.float64)


def update_of(optimizer, num_parameters):
    """A step of an optimizer over several parameters: a function, and its flat arguments, of which the last is lr."""
    update = UPDATES[optimizer]
    group = optimizer([torch.zeros(1)], **({"momentum": 0.9} if optimizer is torch.optim.SGD else {})).param_groups[0]
    hyper = {name: group[name] for name in update.hyperparameters if name != "lr"}
    shapes = [(), (3,), (2, 3)]
    tensors, names = [], []
    for k in range(num_parameters):
        param = torch.randn(NUM_MEMBERS, *shapes[k % 3], generator=torch.Generator().manual_seed(k))
        state = update.init(param, lr=LR, **hyper)
        names.append(list(state))
        state = {name: value + k if value.dtype == torch.float64 else value for name, value in state.items()}
        tensors += [param, *state.values()]

    def step(*tensors):
        *rest, lr = tensors
        given, results = iter(rest), []
        for own in names:
            param = next(given)
            state = {name: next(given) for name in own}
            param, state = update.apply(param, 0.1 * param, state, lr=lr, **hyper)
            results += [param, *state.values()]
        return results

    return step, [*tensors, LR]


def traced(step, tensors):
    with torch.no_grad():
        graph = trace(step, tensors).graph
    simplify_(graph)
    return graph


def num_kernels(graph):
    """How many operators of numbers, one a member, a graph has, views aside."""
    views = (ATEN.select.int, ATEN.view.default, ATEN.unsqueeze.default)
    numbers = [node for node in graph.nodes if node.op == "call_function" and node.target not in views]
    return sum(node.meta["val"].shape[-1:] == (NUM_MEMBERS,) for node in numbers if "val" in node.meta)


@pytest.mark.parametrize("optimizer", UPDATES, ids=lambda optimizer: optimizer.__name__)
def test_joined_update_is_the_same_bit_for_bit(optimizer):
    step, tensors = update_of(optimizer, 6)
    expected = GraphModule({}, traced(step, tensors))(*tensors)
    graph = traced(step, tensors)
    join_alike_(graph, NUM_MEMBERS)
    graph.lint()
    for result, own in zip(GraphModule({}, graph)(*tensors), expected, strict=True):
        assert torch.equal(result, own)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_joined_update_takes_as_many_kernels_for_the_counters_of_many_parameters_as_for_few(optimizer):
    counts = []
    for num_parameters in (6, 30):
        step, tensors = update_of(optimizer, num_parameters)
        tensors = [x[:, None] if x.shape == (NUM_MEMBERS,) and x.dtype == torch.float32 else x for x in tensors]
        graph = traced(step, tensors)
        before = num_kernels(graph)
        join_alike_(graph, NUM_MEMBERS)
        counts.append(num_kernels(graph))
        assert counts[-1] < before / 3
    assert counts[0] == counts[1]


def test_joined_step_writes_the_new_counters_over_the_old_at_once():
    step, tensors = update_of(torch.optim.Adam, 4)
    expected = step(*tensors)
    graph = traced(step, tensors)
    join_alike_(graph, NUM_MEMBERS)
    graph = write_in_place(graph, len(tensors) - 1)
    join_copies_(graph, NUM_MEMBERS)
    targets = [node.target for node in graph.nodes]
    assert targets.count(ATEN._foreach_copy_.default) == 2  # counters in float64, and parameters of one number
    state = [tensor.clone() for tensor in tensors]
    GraphModule({}, graph)(*state)
    for own, new in zip(state, expected, strict=False):
        assert torch.equal(own, new)


def test_number_that_is_a_part_of_the_old_state_is_not_written_with_the_others():
    def step(a, b, c, d, pairs):
        return [pairs[:, 0], a + 1, b + 1, c + 1, pairs + 1]

    tensors = [torch.rand(NUM_MEMBERS, dtype=torch.float64) for _ in range(4)]
    tensors.append(torch.rand(NUM_MEMBERS, 2, dtype=torch.float64))
    expected = step(*[tensor.clone() for tensor in tensors])
    graph = write_in_place(traced(step, tensors), 5)
    join_copies_(graph, NUM_MEMBERS)
    joined = [node for node in graph.nodes if node.target is ATEN._foreach_copy_.default]
    assert [len(node.args[0]) for node in joined] == [3]
    GraphModule({}, graph)(*tensors)
    assert all(torch.equal(own, new) for own, new in zip(tensors, expected, strict=True))


def swapped(a, b, c, lr):
    return [b * lr + 1, a * lr + 1, c * lr + 1, (b * lr).exp(), (c * lr).exp(), (a * lr).exp(), c - a, a - b, b - c]


def written_to(a, b, c, lr):
    view = a.view(-1)
    first = a * 2
    view.add_(1)
    return [first, a * 2, b * 2, c * 2, lr * 2]


def of_other_lengths(a, b, c, lr):
    sums = [(x[:, None] * torch.ones(5, 3, dtype=torch.float64)).sum(1) for x in (a, b, c)]
    return [*(x.sqrt() for x in sums), *(x.sqrt() for x in (a, b, c, lr))]


@pytest.mark.parametrize("step", [swapped, written_to, of_other_lengths], ids=lambda step: step.__name__)
def test_joined_step_computes_what_the_step_does(step):
    tensors = [torch.rand(NUM_MEMBERS, dtype=torch.float64) for _ in range(4)]
    expected = step(*[tensor.clone() for tensor in tensors])
    graph = traced(step, [tensor.clone() for tensor in tensors])
    join_alike_(graph, NUM_MEMBERS)
    graph.lint()
    for result, own in zip(GraphModule({}, graph)(*tensors), expected, strict=True):
        assert torch.equal(result, own)
