import pytest
import torch
from torch.fx import Graph, GraphModule
from vecsweep.kernels._trace import trace

from vecsweep._engine.graph import fuse_writes_, simplify_, split_off_scalars, write_in_place

ATEN = torch.ops.aten


def traced(step, *tensors):
    with torch.no_grad():
        return trace(step, tensors).graph


def run(graph, *tensors):
    return GraphModule({}, graph)(*tensors)


def operators(graph):
    nodes = graph.nodes if isinstance(graph, Graph) else graph.graph.nodes
    return [node.target for node in nodes if node.op == "call_function"]


def momentum(param, buffer, grad, lr):
    buffer = 0.9 * buffer + grad
    return [param - lr[:, None] * buffer, buffer, grad.sum(1)]


def reads_the_old_state_late(param, buffer, grad, lr):
    new = param + grad
    return [new, buffer + (param * grad), lr]


def reads_a_view_of_the_old_state_late(param, buffer, grad, lr):
    view = param.t()
    new = param + grad
    return [new, buffer + view.t() * 2, lr]


def trades_places(param, buffer, grad, lr):
    return [buffer, param, lr]


def mixes_within_the_state(param, buffer, grad, lr):
    return [param + param.flip(0), buffer + buffer.t()[:2, :2].repeat(1, 1), lr]


def returns_the_new_state_too(param, buffer, grad, lr):
    new = param + grad
    return [new, buffer * 2, new]


STEPS = [
    momentum,
    reads_the_old_state_late,
    reads_a_view_of_the_old_state_late,
    trades_places,
    mixes_within_the_state,
    returns_the_new_state_too,
]


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(3)] + [
        torch.rand(2, generator=generator, dtype=torch.float64)
    ]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_step_that_writes_in_place_computes_what_the_step_does(step, is_fused):
    graph = write_in_place(traced(step, *example()), 2)
    if is_fused:
        fuse_writes_(graph)
    tensors = example(seed=1)
    expected = step(*example(seed=1))
    rest = run(graph, *tensors)
    for value, wanted in zip([*tensors[:2], *rest], expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_write_is_fused_into_the_operator_that_computes_the_new_state():
    graph = write_in_place(traced(momentum, *example()), 2)
    assert operators(graph).count(ATEN.copy_.default) == 2
    fuse_writes_(graph)
    assert ATEN.copy_.default not in operators(graph)
    assert {ATEN.sub.out, ATEN.add.out} <= set(operators(graph))


def test_result_that_is_returned_does_not_share_memory_with_the_state():
    graph = write_in_place(traced(returns_the_new_state_too, *example()), 2)
    fuse_writes_(graph)
    tensors = example()
    (new,) = run(graph, *tensors)
    assert new.data_ptr() != tensors[0].data_ptr()


def test_clone_is_dropped_only_where_nobody_writes():
    def writes(x, y):
        a, b = x.clone(), y.clone()
        a.add_(1)
        return [a, b * 2]

    graph = traced(writes, torch.ones(2), torch.ones(2))
    simplify_(graph)
    assert operators(graph).count(ATEN.clone.default) == 1
    x = torch.ones(2)
    torch.testing.assert_close(run(graph, x, torch.ones(2)), [torch.full((2,), 2.0)] * 2)
    torch.testing.assert_close(x, torch.ones(2))


def test_clone_of_what_is_written_to_later_stays():
    def writes(x):
        before = x.clone()
        x.add_(1)
        return [before * 2]

    graph = traced(writes, torch.ones(2))
    simplify_(graph)
    torch.testing.assert_close(run(graph, torch.ones(2)), [torch.full((2,), 2.0)])


def test_numbers_of_each_member_are_computed_before_and_once():
    def adam(param, step, lr):
        step = step + 1
        return [param - (lr / (1 - 0.9**step))[:, None] * param, step]

    tensors = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), torch.ones(2).double()
    graph = write_in_place(traced(adam, *tensors), 2)
    parts = split_off_scalars(GraphModule({}, graph), 2)
    early, late = parts.children()
    assert ATEN.pow.Scalar in operators(early)
    assert not {ATEN.pow.Scalar, ATEN.div.Tensor} & set(operators(late))
    expected = [t.clone() for t in tensors]
    run(graph, *expected)
    parts(*tensors)
    torch.testing.assert_close(list(tensors), expected, rtol=0, atol=0)
