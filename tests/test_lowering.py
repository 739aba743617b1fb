"""What a trace is made into is made once for the same operators, and never stands for others."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vecsweep.kernels._trace import code_of, trace

import vecsweep as vs
from vecsweep._engine.graphs import bindings, lowering

LRS = [1e-3, 1e-2, 1e-1]


@pytest.fixture
def num_made(monkeypatch):
    """Counts the graphs that are made into code."""
    made, simplify_ = [], lowering.simplify_
    monkeypatch.setattr(lowering, "_KEPT", type(lowering._KEPT)())
    monkeypatch.setattr(lowering, "simplify_", lambda graph: made.append(graph) or simplify_(graph))
    return lambda: len(made)


def make(loss_fn=nn.functional.mse_loss, width=8):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(5)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)).double()
    batches = [(x.double(), y.double()) for x, y in batches]
    return vs.Task(model, batches, loss_fn, optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.1))


def loop(task, lr, num_steps):
    """The losses of the loop that people write."""
    model, losses = copy.deepcopy(task.model), []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, weight_decay=task.optimizer.param_groups[0]["weight_decay"]
    )
    for step in range(num_steps):
        x, y = task.batches[step % len(task.batches)]
        loss = task.loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def is_as_the_loop(runs, task):
    expected = np.transpose([loop(task, lr, len(runs.train_loss)) for lr in LRS])
    return np.allclose(runs.train_loss, expected, rtol=1e-9, atol=0)


def sweep(task, num_steps=12):
    return vs.sweep(task, lrs=LRS, num_steps=num_steps, engine="vectorized", compile=False, divergence_factor=None)


def test_second_sweep_and_a_longer_one_make_nothing_anew(num_made):
    first = sweep(make())
    assert num_made() == 1
    np.testing.assert_array_equal(sweep(make()).train_loss, first.train_loss)
    longer = sweep(make(), num_steps=20).extend(num_steps=8)
    assert num_made() == 1
    assert longer.engine.startswith("vectorized, traced")
    assert is_as_the_loop(longer, make())


@pytest.mark.parametrize("changed", ["width", "members", "options"])
def test_other_operators_are_made_into_code_of_their_own(num_made, changed):
    sweep(make())
    task = make(width=9 if changed == "width" else 8)
    if changed == "options":
        task.optimizer.param_groups[0]["weight_decay"] = 0.1 + 1e-6
    runs = sweep(task)
    if changed == "members":
        sweep_of_two = vs.sweep(task, lrs=LRS[:2], num_steps=12, engine="vectorized", compile=False)
        assert sweep_of_two.engine.startswith("vectorized, traced")
    assert num_made() == 2
    assert is_as_the_loop(runs, task)


def test_constant_that_the_caller_changes_between_sweeps_counts_from_the_next_on(num_made):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = 2.0
            self.by_row = [1.0, 2.0, 3.0, 4.0]

        def forward(self, outputs, targets):
            by_row = torch.tensor(self.by_row, dtype=outputs.dtype)
            return self.factor * (by_row * (outputs - targets).square().squeeze(1)).mean()

    task = make(Weighted())
    assert is_as_the_loop(sweep(task), task)
    task.loss_fn.factor = 2.0 + 1e-6
    assert is_as_the_loop(sweep(task), task)
    task.loss_fn.by_row[2] = 3.0 + 1e-6
    assert is_as_the_loop(sweep(task), task)
    assert num_made() == 3
    task.loss_fn.by_row[2] = 3.0
    assert is_as_the_loop(sweep(task), task)
    assert num_made() == 3, "as in the second sweep"


def test_large_constant_does_not_outlive_the_task(num_made):
    table = torch.randn(4, 1000, dtype=torch.float64)
    task = make(lambda outputs, targets: (outputs - targets - table.mean(1, keepdim=True)).square().mean())
    assert is_as_the_loop(sweep(task), task)
    kept = [t for own in lowering._KEPT.values() for t in vars(own.constants).values() if isinstance(t, torch.Tensor)]
    assert all(t.untyped_storage().data_ptr() != table.untyped_storage().data_ptr() for t in kept)
    assert sweep(task).engine.startswith("vectorized, traced")
    assert num_made() == 2


def test_no_more_than_so_many_are_kept(num_made, monkeypatch):
    monkeypatch.setattr(lowering, "_MAX_KEPT", 2)
    for width in (4, 5, 6, 4):
        sweep(make(width=width))
    assert len(lowering._KEPT) == 2
    assert num_made() == 4


class Operators(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func)
        return func(*args, **(kwargs or {}))


def many_operators(x, weight, kernel, index):
    image = nn.functional.max_pool2d(nn.functional.conv2d(x.unflatten(1, (1, 8)), kernel, padding=1), 2)
    hidden = nn.functional.gelu(image.flatten(1) @ weight, approximate="tanh") * 0.5 + torch.ones(6)
    hidden = torch.cat([hidden, torch.zeros_like(hidden)], 1)[:, :6]
    normed = nn.functional.layer_norm(hidden, (6,)).clamp(min=-1).masked_fill(hidden > 2, 0.0)
    attended = nn.functional.scaled_dot_product_attention(normed[None], normed[None], normed[None])[0]
    values, places = attended.sort(dim=1, descending=True)
    chosen = torch.where(places[:, :1] > 2, values.cumsum(1), values.roll(1, 0)).index_select(0, index)
    loss = nn.functional.cross_entropy(torch.cat([chosen, hidden[:2]], 1), index, reduction="none")
    spread = chosen.std(dim=1, correction=0) + chosen.logsumexp(1) + chosen.amax(1).pow(2) + chosen.norm()
    return [loss.mean(), *torch.autograd.grad((loss + spread + (chosen - 1).abs().sum()).sum(), [weight, kernel])]


def test_function_is_called_for_lists_such_as_it_takes():
    def write(x, places, values):
        return [torch.ops.aten.index_put(x, [places, places], values)]

    def write_columns(x, places, values):
        return [torch.ops.aten.index_put(x, [None, places], values)]

    tensors = [torch.zeros(3, 3), torch.tensor([0, 2]), torch.ones(2)]
    for function in (write, write_columns):
        traced = trace(function, tensors)
        bindings.call_directly_(traced.graph)
        assert torch.equal(code_of(traced.constants, traced.graph)(*tensors)[0], function(*tensors)[0])


def test_operators_called_by_their_python_functions_are_those_that_were_traced():
    torch.manual_seed(0)
    tensors = [torch.randn(4, 8, 8), torch.randn(32, 6), torch.randn(2, 1, 3, 3), torch.tensor([3, 1])]
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    traced = trace(many_operators, tensors)
    tensors = [t.detach() for t in tensors]
    with torch.no_grad(), Operators() as expected:
        results = code_of(traced.constants, traced.graph)(*tensors)
    nodes = [node for node in traced.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    bindings.call_directly_(traced.graph)
    assert sum(not isinstance(node.target, torch._ops.OpOverload) for node in nodes) > 0.7 * len(nodes)
    # What makes tensors of nothing heeds no default device: it is none that the step was traced with.
    with torch.no_grad(), torch.device("meta"), Operators() as called:
        again = code_of(traced.constants, traced.graph)(*tensors)
    assert called.called == expected.called
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert torch.allclose(results[0], many_operators(*[t.requires_grad_(t.is_floating_point()) for t in tensors])[0])
