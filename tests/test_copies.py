"""Members are copies of a model: what it reaches by other ways than its modules' names is each copy's own, too.

The oracle trains the model itself, because Python's own copies leave functions as they are.
"""

import copy
import functools
import threading
import types
import warnings
import weakref

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

NUM_STEPS = 12


class WithLambda(nn.Module):
    """A block as in well-known small GPTs, whose MLP is called by a lambda."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.ModuleDict({"up": nn.Linear(6, 12), "down": nn.Linear(12, 6)})
        layers = self.mlp
        self.run = lambda x: layers.down(torch.tanh(layers.up(x)))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(inputs + self.run(inputs))


class WithDefault(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.run = lambda x, head=self.head, *, body=self.body: head(torch.tanh(body(x)))

    def forward(self, inputs):
        return self.run(inputs)


class InAFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3))
        scale = self.scale
        self.scaled = lambda x: scale * x

    def forward(self, inputs):
        return self.scaled(self.head(inputs))


class WithHook(nn.Module):
    """A hook that keeps features on the model it was made for."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.features = []
        self.body.register_forward_hook(lambda module, args, output: self.features.append(output))

    def forward(self, inputs):
        self.features.clear()
        outputs = self.head(torch.tanh(self.body(inputs)))
        return outputs + 0.1 * self.features[0].square().mean()


class WithNested(nn.Module):
    """Functions that call functions, one of them itself."""

    def __init__(self):
        super().__init__()
        self.head, depth = nn.Linear(6, 3), 2
        body = nn.Linear(6, 6)
        self.body = body

        def deep(x, left):
            return x if left == 0 else deep(torch.tanh(body(x)), left - 1)

        self.run = lambda x: deep(x, depth)

    def forward(self, inputs):
        return self.head(self.run(inputs))


class WithForwardPutAround(nn.Module):
    """A `forward` that was put around the model's own, as by what measures or scales it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        itself, own = self.forward, self.body.forward
        self.forward = types.MethodType(lambda model, x: 0.5 * itself(x) + model.head.bias, self)
        self.body.forward = functools.wraps(own)(lambda x: torch.tanh(own(x)))

    def forward(self, inputs):
        return self.head(self.body(inputs))


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, inputs):
        return inputs * self.parent().scale


class WithWeakReference(nn.Module):
    """A child that knows its parent, which is no child of its own."""

    def __init__(self):
        super().__init__()
        self.head, self.scale, self.child = nn.Linear(6, 3), nn.Parameter(torch.ones(6)), Child(self)

    def forward(self, inputs):
        return self.head(self.child(inputs))


class Layer:
    """A layer that is no module."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, inputs):
        return torch.tanh(inputs @ self.weight)


class InObjects(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(0.3 * torch.randn(6, 6)), nn.Parameter(0.3 * torch.randn(6, 6))
        self.head = nn.Linear(6, 3)
        self.layers = [Layer(self.first), Layer(self.second)]

    def forward(self, inputs):
        for layer in self.layers:
            inputs = layer(inputs)
        return self.head(inputs)


class AllInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(0.3 * torch.randn(6, 3))
        self.weights = [self.first]

    def forward(self, inputs):
        return inputs @ self.weights[0]


class DetachedInAList(AllInAList):
    def forward(self, inputs):
        return inputs @ (self.first + 0.1 * self.weights[0].data.sin())


class InAListWhenEvaluated(AllInAList):
    def forward(self, inputs):
        return inputs @ (self.first if self.training else self.weights[0])


class BufferInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("num_calls", torch.zeros(()))
        self.counts = [self.num_calls]

    def forward(self, inputs):
        if self.training:
            self.counts[0] += 1
        return self.head(inputs) * self.num_calls


def make_task(make_model):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)]
    return vs.Task(
        make_model(),
        batches,
        F.cross_entropy,
        optimizer=lambda params: torch.optim.Adam(params, lr=0.01),
        val_batches=batches[:2],
    )


def assert_trains_as_the_model_itself(make_model, engine):
    task = make_task(make_model)
    before = copy.deepcopy(task.model.state_dict())
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=NUM_STEPS, engine=engine)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the caller's model has changed"
    for i, member in enumerate(runs.members):
        itself = make_task(make_model)
        expected = stock.train_in_place(itself.model, itself, member.lr, NUM_STEPS)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)
        trained = runs.model(i)
        assert trained.state_dict().keys() == expected.model.state_dict().keys()
        for name, value in expected.model.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-9, atol=1e-9)
        evaluated = np.mean([F.cross_entropy(expected.model.eval()(x), y).item() for x, y in task.val_batches])
        assert runs.metrics["val_loss"][-1, i] == pytest.approx(evaluated, rel=1e-9)
        inputs = torch.ones(2, 6)
        torch.testing.assert_close(trained.eval()(inputs), expected.model.eval()(inputs), rtol=1e-9, atol=1e-9)
    return runs


FUNCTIONS = [WithLambda, WithDefault, WithHook, WithNested, WithForwardPutAround, WithWeakReference]


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("make_model", FUNCTIONS, ids=lambda c: c.__name__)
def test_functions_that_a_model_keeps_are_of_the_copy(make_model, engine, float64):
    assert assert_trains_as_the_model_itself(make_model, engine).engine.startswith(engine)


@pytest.mark.parametrize("make_model", [WithLambda, WithHook], ids=lambda c: c.__name__)
def test_check_trains_copies_whose_functions_are_their_own(make_model, float64):
    assert vs.check(make_task(make_model), lrs=[0.01, 0.1], num_steps=5).is_equal


def test_function_that_refers_to_nothing_of_the_model_is_the_callers_own():
    noted = []
    task = make_task(lambda: nn.Linear(6, 3))
    task.model.note = lambda: noted.append(1)
    assert vs.sweep(task, lrs=[0.1], num_steps=2).model(0).note is task.model.note


@pytest.mark.parametrize("engine", ["auto", "vectorized", "sequential"])
@pytest.mark.parametrize(
    ("make_model", "name"),
    [
        (InObjects, "first"),
        (AllInAList, "first"),
        (DetachedInAList, "first"),
        (InAListWhenEvaluated, "first"),
        (BufferInAList, "num_calls"),
        (InAFunction, "scale"),
    ],
)
def test_tensors_that_a_model_takes_from_beside_its_modules_are_the_members_own(make_model, name, engine, float64):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs = assert_trains_as_the_model_itself(make_model, engine)
    assert runs.engine.startswith("sequential")
    if engine != "sequential":
        assert f"takes '{name}' from a list, an object or a function" in str(told[0].message)


class DrawsByItsPlace(nn.Module):
    """As augmentations do, whose generators take the precision of the tensors that they are taken along with."""

    def __init__(self):
        super().__init__()
        self.precision = torch.float32
        self.head = nn.Linear(6, 3)

    def _apply(self, fn, recurse=True):
        self.precision = torch.float64
        return super()._apply(fn, recurse)

    def forward(self, inputs):
        return self.head(inputs + torch.rand(inputs.shape, dtype=self.precision))


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_model_that_is_taken_nowhere_is_not_told_to_go(engine, float64):
    task = make_task(DrawsByItsPlace)
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=NUM_STEPS, engine=engine)
    for i, member in enumerate(runs.members):
        model = copy.deepcopy(task.model)
        optimizer = torch.optim.Adam(model.parameters(), lr=member.lr)
        torch.manual_seed(0)
        losses = []
        for step in range(NUM_STEPS):
            inputs, targets = task.batches[step % len(task.batches)]
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)


@pytest.mark.parametrize("is_built", [False, True])
def test_model_that_refuses_to_be_copied_is_told_so_in_words(is_built):
    def make():
        model = nn.Linear(6, 3)
        model.lock = threading.Lock()
        return model

    batches = [(torch.ones(2, 6), torch.ones(2, 3))]
    task = vs.Task(make if is_built else make(), batches, F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.raises(TypeError, match=r"must be one that `copy.deepcopy` can copy.*of this Linear.*_thread.lock"):
        vs.sweep(task, lrs=[0.1], num_steps=2)
