import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep.cli.plain_loop import time_step, train_plainly

LRS = [0.01, 0.1]


def make_task(**how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]
    return vs.Task(model, batches, F.cross_entropy, **how)


def momentum(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def test_plain_loop_trains_as_an_ordinary_loop_does(float64):
    task = make_task(optimizer=momentum)
    expected = [stock.train(task, lr, 7).losses for lr in LRS]
    np.testing.assert_allclose(train_plainly(task, LRS, 7), np.stack(expected, axis=1), rtol=1e-12)


def test_template_is_copied_with_the_model_and_never_stepped(float64):
    task = make_task(optimizer=momentum)
    before = [p.detach().clone() for p in task.model.parameters()]
    template = vs.Task(task.model, task.batches, F.cross_entropy, optimizer=momentum(task.model.parameters()))
    np.testing.assert_array_equal(train_plainly(template, LRS, 5), train_plainly(task, LRS, 5))
    assert all(torch.equal(p, value) for p, value in zip(task.model.parameters(), before, strict=True))
    assert not template.optimizer.state


def test_groups_keep_the_ratios_of_their_learning_rates(float64):
    def groups(params):
        first, *rest = params
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.01}])

    task = make_task(optimizer=groups)
    np.testing.assert_allclose(train_plainly(task, [0.5], 5)[:, 0], stock.train(task, 0.5, 5).losses, rtol=1e-12)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_timing_leaves_the_callers_random_numbers_alone(precision):
    task = make_task(optimizer=momentum)
    before = torch.get_rng_state()
    assert time_step(task, precision=precision) > 0
    assert torch.equal(torch.get_rng_state(), before)
