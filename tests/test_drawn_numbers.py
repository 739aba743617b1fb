"""Steps and optimizers that draw numbers: one pass, the same numbers for all members of a seed, as in a plain loop."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine.caller.rng import Streams

pytestmark = pytest.mark.usefixtures("float64")

LRS, NUM_STEPS = [0.01, 0.1, 0.3], 12


def mixup(model, batch):
    """Zhang et al., mixup, 2017: a Beta-distributed mean of each sample and another."""
    inputs, targets = batch
    share, other = np.random.beta(0.2, 0.2), torch.randperm(len(inputs))
    outputs = model(share * inputs + (1 - share) * inputs[other])
    return share * F.cross_entropy(outputs, targets) + (1 - share) * F.cross_entropy(outputs, targets[other])


def cutmix(model, batch):
    """Yun et al., CutMix, 2019: a box of each image from another, the targets mixed by its area."""
    inputs, targets = batch
    share, other = np.random.beta(1, 1), torch.randperm(len(inputs))
    half, (y, x) = int(8 * np.sqrt(1 - share)) // 2, np.random.randint(8, size=2)
    rows, columns = slice(max(y - half, 0), y + half), slice(max(x - half, 0), x + half)
    inputs = inputs.clone()
    inputs[:, :, rows, columns] = inputs[other][:, :, rows, columns]
    share = 1 - inputs[0, 0, rows, columns].numel() / 64
    outputs = model(inputs)
    return share * F.cross_entropy(outputs, targets) + (1 - share) * F.cross_entropy(outputs, targets[other])


def flip(model, batch):
    inputs, targets = batch
    if random.random() < 0.5:
        inputs = inputs.flip(-1)
    return F.cross_entropy(model(inputs + 0.1 * torch.randn_like(inputs)), targets)


class Langevin(torch.optim.Optimizer):
    """Welling and Teh, stochastic gradient Langevin dynamics, 2011; NumPy has a say in when there is noise."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                noise = np.random.random() * torch.randn_like(p)
                p.add_(p.grad, alpha=-group["lr"]).add_(noise, alpha=0.01 * group["lr"] ** 0.5)


def momentum(params, lr):
    return torch.optim.SGD(params, lr, momentum=0.9)


def parts():
    torch.manual_seed(7)
    inputs, targets = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 3))
    return model, [(inputs[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]


def plain_losses(step, lr, seed, make_optimizer=momentum):
    """What an ordinary program computes that seeds all three generators and trains."""
    model, batches = parts()
    model = copy.deepcopy(model).train()
    optimizer = make_optimizer(model.parameters(), lr)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    losses = []
    for t in range(NUM_STEPS):
        loss = step(model, batches[t % len(batches)])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("step", [mixup, cutmix, flip])
@pytest.mark.parametrize("chunk_size", ["auto", 2])
def test_members_are_batched_and_equal_to_a_plain_loop(step, chunk_size):
    model, batches = parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    task = vs.Task(model, batches, training_step=step, optimizer=optimizer)
    runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=NUM_STEPS, engine="vectorized", chunk_size=chunk_size)
    assert runs.engine.startswith("vectorized, eager")
    for i, member in enumerate(runs.members):
        expected = plain_losses(step, member.lr, member.seed)
        np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=1e-9, err_msg=str(member))


def test_extension_draws_the_numbers_that_follow():
    model, batches = parts()
    task = vs.Task(
        model, batches, training_step=mixup, optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    )
    runs = vs.sweep(task, lrs=[0.1], num_steps=5, engine="vectorized").extend(num_steps=NUM_STEPS - 5)
    np.testing.assert_allclose(runs.train_loss[:, 0], plain_losses(mixup, 0.1, 0), rtol=1e-9)


@pytest.mark.parametrize(("engine", "chunk_size"), [("vectorized", 6), ("vectorized", 2), ("sequential", "auto")])
def test_members_whose_optimizer_draws_equal_a_plain_loop(engine, chunk_size):
    def step(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])  # which draws the masks of dropout in between

    model, batches = parts()
    task = vs.Task(model, batches, training_step=step, optimizer=Langevin(model.parameters(), lr=0.1))
    runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=5, engine=engine, chunk_size=chunk_size)
    runs = runs.extend(num_steps=NUM_STEPS - 5)
    assert runs.engine.startswith(engine)
    for i, member in enumerate(runs.members):
        expected = plain_losses(step, member.lr, member.seed, Langevin)
        np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=1e-9, err_msg=str(member))


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_validation_by_such_a_step_is_the_same_for_both_engines(engine):
    model, batches = parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = vs.Task(model, batches, training_step=mixup, optimizer=optimizer, val_batches=batches)
    runs = vs.sweep(task, lrs=[1e-12, 1e-13], num_steps=4, engine=engine)
    evaluated = copy.deepcopy(model).eval()
    values = runs.metrics["val_loss"][-1]
    assert values[0] == pytest.approx(values[1])  # as good as untrained, and the same draws for both
    plain = np.mean([F.cross_entropy(evaluated(inputs), targets).item() for inputs, targets in batches])
    assert abs(values[0] - plain) < 0.2


def test_what_a_step_draws_leaves_the_callers_generators_alone():
    model, batches = parts()
    task = vs.Task(model, batches, training_step=mixup, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    before = np.random.get_state()[1].copy(), random.getstate()
    vs.sweep(task, lrs=LRS, num_steps=4, engine="vectorized")
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert random.getstate() == before[1]


def test_streams_stand_where_they_were_marked_whatever_is_drawn_meanwhile():
    # Normal numbers of NumPy come in pairs, of which it keeps the second: a mark between the two holds it.
    streams, chosen = Streams(torch.device("cpu")), random.Random(1)
    draws = (np.random.randn, np.random.rand, random.random, lambda: torch.rand(()), lambda: np.random.seed(7))
    marks = []
    with streams.borrowed():
        for _ in range(3000):
            step = chosen.random()
            if step < 0.5:
                chosen.choice(draws)()
            elif step < 0.75:
                mark = streams.mark("model", 0)
                marks.append((mark, np.random.get_state(), random.getstate(), torch.get_rng_state()))
            elif marks:
                mark, *expected = chosen.choice(marks[-5:])
                streams.rewind("model", 0, mark)
                numpy, python, own = expected
                assert all(map(np.array_equal, np.random.get_state(), numpy))
                assert random.getstate() == python
                assert torch.equal(torch.get_rng_state(), own)


def test_streams_stand_where_they_were_marked_under_another_generator_of_numpy():
    streams, before = Streams(torch.device("cpu")), np.random.get_bit_generator()
    with streams.borrowed():
        mark = streams.mark("model", 0)
        first = np.random.rand(3)
        np.random.set_bit_generator(np.random.PCG64(1))
        try:
            np.random.rand(3)
        finally:
            np.random.set_bit_generator(before)
        streams.rewind("model", 0, mark)
        assert np.array_equal(np.random.rand(3), first)
