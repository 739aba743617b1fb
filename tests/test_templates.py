"""Optimizers that members cannot have copies of are refused at the call, by name and with a remedy."""

import copy
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import vecsweep as vs


class SAM(torch.optim.SGD):
    """As published: two gradients a step."""

    def first_step(self, zero_grad=False): ...

    def second_step(self, zero_grad=False): ...

    def step(self, closure=None):
        assert closure is not None, "Sharpness Aware Minimization requires closure"


class NeedsClosure(torch.optim.SGD):
    def step(self, closure): ...


class Lookahead(torch.optim.Optimizer):
    """As it is copied from repository to repository: without `super().__init__`."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups = inner.param_groups
        self.state = defaultdict(dict)
        self.defaults = inner.defaults


class Wrapper:
    """No optimizer, but it behaves like one."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self):
        self.inner.step()


class AroundAnother(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner


class SlowWeights(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]


class HoldsAveragedModel(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.averaged = AveragedModel(nn.Linear(4, 1))


class HasModes(torch.optim.SGD):
    """As schedule-free optimizers are."""

    def train(self): ...

    def eval(self): ...


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


REFUSED = {
    "not all are optimizers": (
        lambda p: [sgd(p[:1]), None],
        TypeError,
        "list of optim.* got a list of 2. Leave out",
    ),
    "none": (lambda p: (), TypeError, "list of optimizers .* got a tuple of 0"),
    "twice": (lambda p: [sgd(p), sgd(p[1:])], ValueError, "parameters appear in more than one parameter group"),
    "one of two": (lambda p: [sgd(p[:1]), SAM(p[1:], lr=0.1)], TypeError, "SAM needs two"),
    "modes": (lambda p: [sgd(p[:1]), HasModes(p[1:], lr=0.1)], ValueError, "HasModes among several: it evaluates at"),
    "sam": (
        lambda p: SAM(p, lr=0.1),
        TypeError,
        "SAM needs two, .* `second_step`. Sweep with",
    ),
    "closure": (lambda p: NeedsClosure(p, lr=0.1), TypeError, "NeedsClosure evaluates a closure.* first-order"),
    "lookahead": (lambda p: Lookahead(sgd(p)), ValueError, "Lookahead keeps some of it in attributes.*`self.state"),
    "wrapper": (lambda p: Wrapper(sgd(p)), TypeError, "Wrapper only behaves like one. Pass the optimizer inside it"),
    "around": (lambda p: AroundAnother(sgd(p)), ValueError, "AroundAnother keeps some of it in `inner`"),
    "slow weights": (lambda p: SlowWeights(p, lr=0.1), ValueError, "SlowWeights keeps some of it in `slow`"),
    "averaged model": (
        lambda p: HoldsAveragedModel(p, lr=0.1),
        ValueError,
        "Holds.* keeps some of it in `averaged`",
    ),
}


def sweep(model, optimizer):
    task = vs.Task(model, [(torch.ones(2, 4), torch.ones(2, 1))], F.mse_loss, optimizer=optimizer)
    return vs.sweep(task, lrs=[0.1], num_steps=2)


@pytest.mark.parametrize("is_function", [True, False], ids=["function", "template"])
@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_optimizer_that_members_cannot_have_copies_of_is_refused_by_name(make, error, message, is_function):
    model = nn.Linear(4, 1)
    before = copy.deepcopy(model.state_dict())
    optimizer = (lambda params: make(list(params))) if is_function else make(list(model.parameters()))
    with pytest.raises(error, match=message):
        sweep(model, optimizer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
