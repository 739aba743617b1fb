"""Functions of the caller's own with a backward of their own, in members that are batched, against a plain loop."""

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import vecsweep as vs

LRS = [1e-3, 1e-2, 5e-2]
NUM_STEPS = 9


@pytest.fixture(autouse=True)
def in_float64(float64):
    torch.manual_seed(0)


class Sign(Function):
    """Gradients pass straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Reversed(Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.factor * grad, None


class Product(Function):
    """Two inputs, two results, gradients where they are needed."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t(), x.sum(0)

    @staticmethod
    def backward(ctx, grad, of_sum):
        x, weight = ctx.saved_tensors
        to_x = grad @ weight + of_sum if ctx.needs_input_grad[0] else None
        return to_x, grad.t() @ x if ctx.needs_input_grad[1] else None


class Exponential(Function):
    """As PyTorch wants it for its transforms, but without a word of vmap."""

    @staticmethod
    def forward(x, scale=1.0):
        return (scale * x).exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return ctx.scale * grad * ctx.saved_tensors[0], None


class Generated(Exponential):
    generate_vmap_rule = True


class ByNumPy(Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx, grad):
        return grad


# name: what is done to the hidden units, given those and the batch's inputs and the model
CASES = {
    "straight through": lambda hidden, inputs, model: Sign.apply(hidden),
    "reversed": lambda hidden, inputs, model: Reversed.apply(hidden, 0.5),
    "of what is shared and what is not": lambda hidden, inputs, model: Product.apply(inputs, model[0].weight)[0].tanh(),
    "of hidden units and weights": lambda hidden, inputs, model: Product.apply(hidden, model[1].weight)[0],
    "with a context": lambda hidden, inputs, model: Exponential.apply(hidden, scale=0.5),
    "with a rule": lambda hidden, inputs, model: Generated.apply(hidden, 0.5),
    "of the batch alone": lambda hidden, inputs, model: hidden + Sign.apply(inputs).sum(1, keepdim=True),
    "by NumPy": lambda hidden, inputs, model: ByNumPy.apply(hidden),
}


def make_task(name, **kwargs):
    def step(model, batch):
        hidden = torch.tanh(model[0](batch[0]))
        return F.cross_entropy(model[2](CASES[name](hidden, batch[0], model)), batch[1])

    batches = [(torch.randn(6, 7), torch.randint(3, (6,))) for _ in range(4)]
    model = nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3))
    return vs.Task(model, batches, training_step=step, optimizer=sgd, **kwargs)


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def plain_loop(task, lr):
    model, losses = copy.deepcopy(task.model), []
    optimizer = sgd(model.parameters(), lr)
    for t in range(NUM_STEPS):
        loss = task.training_step(model, task.batches[t % len(task.batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_members_with_functions_of_ones_own_train_in_one_pass_as_plain_loops_do(name, seeds):
    task = make_task(name, val_batches=make_task(name).batches)
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, seeds=seeds, engine="vectorized", compile=False)
    assert runs.engine.startswith("vectorized")
    for lr in LRS:
        losses, model = plain_loop(task, lr)
        own = runs.select(lr=lr, seed=0)
        np.testing.assert_allclose(own.train_loss[:, 0], losses, rtol=1e-9)
        validated = np.mean([task.training_step(model, batch).item() for batch in task.val_batches])
        np.testing.assert_allclose(own.metrics["val_loss"][-1, 0], validated, rtol=1e-9)


def test_step_with_such_a_function_is_traced_unless_its_numbers_leave_pytorch():
    how = {"lrs": LRS, "num_steps": NUM_STEPS, "engine": "vectorized", "compile": False}
    assert vs.sweep(make_task("straight through"), **how).engine.startswith("vectorized, traced")
    assert vs.sweep(make_task("by NumPy"), **how).engine.startswith("vectorized, eager")


def test_functions_are_applied_as_ever_outside_a_step_and_in_other_threads():
    before = vars(Function)["apply"]
    elsewhere, found = threading.Event(), []

    def apply_elsewhere():
        elsewhere.wait(30)
        with pytest.raises(RuntimeError, match="must override the setup_context"):
            torch.func.vmap(Sign.apply)(torch.ones(2, 3))
        x = torch.ones(3, requires_grad=True)
        found.append(torch.autograd.grad(Reversed.apply(x, 0.5).sum(), x)[0])

    thread = threading.Thread(target=apply_elsewhere)
    thread.start()

    def loss(outputs, targets):
        elsewhere.set()
        thread.join(30)
        return F.cross_entropy(Sign.apply(outputs), targets)

    batches = [(torch.randn(6, 7), torch.randint(3, (6,)))]
    vs.sweep(vs.Task(nn.Linear(7, 3), batches, loss, optimizer=sgd), lrs=LRS, num_steps=3, engine="vectorized")
    assert torch.equal(found[0], torch.full((3,), -0.5))
    assert vars(Function)["apply"] is before
    with pytest.raises(RuntimeError, match="must override the setup_context"):
        torch.func.vmap(Sign.apply)(torch.ones(2, 3))
