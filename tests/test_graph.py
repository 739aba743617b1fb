import pytest
import torch
from torch.fx import Graph, GraphModule
from vecsweep.kernels._trace import trace

from vecsweep._engine.graphs.graph import fold_copies_, fuse_writes_, simplify_, split_off_scalars, write_in_place

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


WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def takes_weights_along(x):
    return [x * WEIGHTS.to(x.device), x + torch.arange(3).add(1).to(x.device)]


def writes_to_what_it_took_along(x):
    taken = torch.zeros(3).to(x.device)
    taken[0] = 1
    return [x * taken]


def draws_and_takes_along(x):
    return [x * torch.rand(3).to(x.device)]


@pytest.mark.parametrize(
    ("step", "num_copies"),
    [(takes_weights_along, 0), (writes_to_what_it_took_along, 1), (draws_and_takes_along, 1)],
)
def test_what_is_the_same_in_each_step_is_copied_to_the_device_once(step, num_copies):
    with torch.no_grad():
        made = trace(step, [torch.ones(3, device="meta")])
    assert ATEN._to_copy.default in operators(made.graph)
    fold_copies_(made.graph, made.constants)
    assert operators(made.graph).count(ATEN._to_copy.default) == num_copies
    assert all(result.is_meta for result in made.module()(torch.ones(3, device="meta")))


def test_what_was_copied_once_has_its_value():
    def step(x):
        return [x * WEIGHTS.to(x.dtype), torch.arange(3).to("cpu", torch.float64) + x]

    x = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    with torch.no_grad():
        made = trace(step, [x])
        for node in made.graph.nodes:  # as from the host to a GPU
            if node.target is ATEN._to_copy.default:
                node.kwargs = node.kwargs | {"device": torch.device("cpu")}
        fold_copies_(made.graph, made.constants)
    assert ATEN._to_copy.default not in operators(made.graph)
    for result, expected in zip(made.module()(x), step(x), strict=True):
        torch.testing.assert_close(result, expected)
