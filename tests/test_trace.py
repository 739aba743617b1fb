"""Tracing: that a graph computes of other numbers what the function does."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap
from vecsweep.kernels._trace import DataDependentError, as_if_compiled, is_tracing, trace

import vecsweep as vs


def assert_traced(function, *shapes):
    """Trace on some numbers, and compare on others, twice, because what is written to must not stay."""
    traced = trace(function, [torch.rand(shape) for shape in shapes])
    graph, results = traced.module(), traced.results
    assert not is_tracing()
    for seed in (1, 2):
        torch.manual_seed(seed)
        tensors = [torch.rand(shape) for shape in shapes]
        torch.testing.assert_close(graph(*(t.clone() for t in tensors)), function(*(t.clone() for t in tensors)))
    for node, result in zip(graph.graph.output_node().args[0], results, strict=True):
        assert (node.meta["val"].shape, node.meta["val"].dtype) == (result.shape, result.dtype)
    return graph


def test_results_in_tuples_and_lists():
    assert_traced(lambda x: [*x.split([1, 2]), *torch.sort(x, dim=1), *torch.var_mean(x, 0)], (3, 4))


def test_views_that_are_written_to():
    def function(x):
        y = x.clone()
        y[1:].mul_(2)
        y.T[0].add_(y.sum())
        return [y, y.view(-1)[::2]]

    assert_traced(function, (3, 3))


def test_constants_that_are_written_to_are_as_they_were_each_time():
    kept = torch.tensor([3.0, 4.0])

    def function(x):
        fresh = torch.tensor([1.0, 2.0])
        fresh += x
        return [fresh * kept + torch.arange(2), torch.tensor(2.5).add_(x.sum())]

    assert_traced(function, (2,))
    assert kept.tolist() == [3.0, 4.0]


def test_inputs_that_are_returned_and_results_that_are_used_twice():
    assert_traced(lambda x, y: [y, x, x + y, x + y], (2,), (2,))


def test_marks_of_a_profiler_are_left_out():
    def function(x):
        with torch.profiler.record_function("double"):
            return [2 * x]

    assert_traced(function, (3,))


def test_gradients_under_vmap():
    def loss(w, x):
        return F.cross_entropy(F.layer_norm(x @ w, (3,)), torch.tensor([0, 2, 1, 1]))

    def function(w, x):
        w = w.detach().requires_grad_()
        losses = vmap(loss, in_dims=(0, None))(w, x)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), [w])]

    assert_traced(function, (5, 6, 3), (4, 6))


def test_what_a_module_returns_for_a_buffer_is_the_new_one():
    norm = nn.BatchNorm1d(3)

    def function(x, mean, var):
        mean, var = mean.clone(), var.clone()
        out = F.batch_norm(x, mean, var, norm.weight.detach(), norm.bias.detach(), training=True)
        return [out, mean, var]

    assert_traced(function, (4, 3), (3,), (3,))


OUTSIDE = torch.ones(3)  # which others may write to


def writes_to_a_part_of_a_constant(x):
    total, mask = torch.zeros(3), torch.ones(2, 3)
    rows = mask.T.unbind(1)
    rows[1].copy_(x)
    total += 1
    return [x * float(total.sum()) * float(mask[0].sum())]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x * x.sum().item()],
        lambda x: [x * float(x.max())],
        lambda x: [x if x.sum() > 0 else -x],
        lambda x: [x if torch.equal(x, torch.ones(3)) else -x],
        lambda x: [x if torch.allclose(x, torch.ones(3)) else -x],
        lambda x: [x * float((OUTSIDE + 1).sum())],
        lambda x: [x * torch.rand(3).sum().item()],
        lambda x: [x * float(torch.zeros(3).uniform_().sum())],
        writes_to_a_part_of_a_constant,
    ],
    ids=["item", "float", "if", "equal", "close", "outside", "drawn", "drawn in place", "view"],
)
def test_numbers_taken_out_of_tensors_are_no_constants(function):
    with pytest.raises(DataDependentError):
        trace(function, [torch.ones(3)])
    assert not is_tracing()


def test_numbers_taken_out_of_constants_are():
    assert_traced(lambda x: [x * torch.tensor(3.0).item()], (2,))


@pytest.mark.parametrize("is_triangle", [True, False])
def test_numbers_taken_out_of_what_follows_from_constants_are(is_triangle):
    def function(x):
        mask = torch.triu(torch.full((2, 2), -torch.inf), diagonal=1) if is_triangle else torch.zeros(2, 2)
        least, _ = mask.min(dim=0)
        mask[0, 0] += 0
        is_causal = bool((mask == nn.Transformer.generate_square_subsequent_mask(2)).all())
        return [
            x * 2
            if is_causal and torch.equal(least, mask[0]) and torch.allclose(mask, mask, atol=0.1)
            else x + mask.sum()
        ]

    graph = assert_traced(function, (2,))
    assert (graph(torch.ones(2))[0] == 2).all() == is_triangle


def test_models_are_told_that_they_are_compiled_for_a_while():
    assert not torch.compiler.is_compiling()
    with as_if_compiled():
        assert torch.compiler.is_compiling()
    assert not torch.compiler.is_compiling()


class Masked(nn.Module):
    """A layer that skips a mask of nothing, as transformers' models do, unless a compiler looks on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        mask = (x[:, :1] > -9).to(x.dtype)
        if torch.compiler.is_compiling() or not bool(mask.all()):
            x = x * mask
        return self.linear(x)


def test_model_that_looks_at_its_batch_but_not_for_compilers_is_traced():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(12)]
    batches[7][0][2, 0] = -10.0  # what the trace must not take for granted
    task = vs.Task(Masked(), batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    ours = vs.sweep(task, lrs=[0.1, 0.3], num_steps=24, engine="vectorized")
    assert ours.engine.startswith("vectorized, traced")
    theirs = vs.sweep(task, lrs=[0.1, 0.3], num_steps=24, engine="sequential")
    torch.testing.assert_close(ours.train_loss, theirs.train_loss, rtol=1e-5, atol=0)


def evaluated(metric, *, num_val=6, engine="vectorized"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(4)]
    val_batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(num_val)]
    task = vs.Task(
        model,
        batches,
        F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        val_batches=val_batches,
        metrics={"own": metric},
    )
    return vs.sweep(task, lrs=[0.1, 0.3, 0.5], seeds=2, num_steps=40, val_every=4, engine=engine)


def test_evaluation_is_traced_and_gives_what_an_ordinary_pass_does(monkeypatch):
    from vecsweep._engine.members import measure

    traced = []
    try_to_trace = measure.try_to_trace
    monkeypatch.setattr(measure, "try_to_trace", lambda *given: traced.append(given) or try_to_trace(*given))
    ours = evaluated(lambda outputs, targets: (outputs.argmax(1) == targets).double().mean())
    assert len(traced) == 1
    theirs = evaluated(lambda outputs, targets: (outputs.argmax(1) == targets).double().mean(), engine="sequential")
    for name, values in theirs.metrics.items():
        torch.testing.assert_close(ours.metrics[name], values, rtol=1e-4, atol=1e-6)


def test_metric_that_cannot_be_traced_is_computed_as_it_is():
    ours = evaluated(lambda outputs, targets: torch.histc(outputs.double(), bins=3)[0] / 24)
    assert ours.metrics["val_own"].shape == (10, 6)


def test_evaluation_that_depends_on_more_than_it_is_given_is_found_out(monkeypatch):
    monkeypatch.setenv("CALLS", "0")

    def metric(outputs, targets):
        os.environ["CALLS"] = str(int(os.environ["CALLS"]) + 1)
        return outputs.mean() + int(os.environ["CALLS"])

    with pytest.warns(vs.FallbackWarning, match="traced evaluation gives other numbers"):
        evaluated(metric)
