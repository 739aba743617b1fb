"""The modes of PyTorch that a caller is inside of: a run neither heeds nor changes them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

NUM_STEPS = 20


def loss_of(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def loss_that_cannot_be_mapped(model, batch):
    loss = loss_of(model, batch)
    return loss if loss.item() >= 0 else -loss


def loss_with_a_context_of_its_own(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch[0])
    return F.mse_loss(outputs.float(), batch[1])


def task_of(training_step=loss_of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    batches = [(torch.randn(8, 6), torch.randn(8, 1) + 3) for _ in range(5)]
    return vs.Task(model, batches, training_step=training_step, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def train_plainly(task, lr):
    model = copy.deepcopy(task.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = task.training_step(model, task.batches[step % 5])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def modes():
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize(
    ("training_step", "rtol"),
    [(loss_of, 1e-5), (loss_that_cannot_be_mapped, 1e-5), (loss_with_a_context_of_its_own, 2e-2)],
)
def test_sweep_inside_autocast_trains_as_a_plain_loop_outside(training_step, rtol, engine):
    task = task_of(training_step)
    with torch.autocast("cpu", torch.bfloat16):
        inside = modes()
        nn.Linear(6, 8)(torch.ones(1, 6))  # so that autocast has something in its cache
        runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=NUM_STEPS, engine=engine)
        assert modes() == inside
    for i, lr in enumerate([0.01, 0.1]):
        np.testing.assert_allclose(runs.train_loss[:, i], train_plainly(task, lr), rtol=rtol)


def test_autocast_of_the_caller_goes_on_as_before_a_sweep_inside_it():
    task = task_of()
    model, x = nn.Linear(6, 8), torch.ones(1, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        model(x)
        vs.sweep(task, lrs=[0.1], num_steps=2)
        assert model(x).dtype == torch.bfloat16
        with torch.no_grad():
            model.weight.zero_(), model.bias.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert not model(x).any(), "the outermost context has taken its casts along"


def test_range_test_of_the_finder_inside_autocast_trains_as_outside():
    def history():
        task = task_of()
        optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
        finder = vs.LRFinder(task.model, optimizer, nn.MSELoss())
        data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*task.batches, strict=True)))
        finder.range_test(torch.utils.data.DataLoader(data, 8), end_lr=0.1, num_iter=NUM_STEPS)
        return finder.history["loss"]

    outside = history()
    with torch.autocast("cpu", torch.bfloat16):
        assert history() == outside


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_default_device_and_deterministic_algorithms_of_the_caller_stay(engine):
    task = task_of()
    expected = train_plainly(task, 0.1)
    torch.set_default_device("meta")  # stands for a device on which nothing of the task is
    torch.use_deterministic_algorithms(mode=True)
    try:
        inside = modes()
        runs = vs.sweep(task, lrs=[0.1], num_steps=NUM_STEPS, engine=engine)
        trained = runs.model(0).state_dict()
        assert modes() == inside
    finally:
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(mode=False)
    np.testing.assert_allclose(runs.train_loss[:, 0], expected, rtol=1e-5)
    assert all(tensor.device.type == "cpu" for tensor in trained.values())
