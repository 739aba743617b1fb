"""Losses that take values out of their batch: not those of the batches that a step was traced and checked on."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

LRS = [0.1, 0.5]
NUM_STEPS = 40  # past the checks at calls 3 and 30, all on batches without padding
PADDED = -100


def make_batches():
    """Sequences of four labels; those of the last batches are shorter."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(NUM_STEPS):
        inputs = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (6, 4), generator=generator)
        if step > 33:
            labels[: step % 5 + 1, 3 - step % 2 :] = PADDED
        batches.append((inputs, labels))
    return batches


def cross_entropy(outputs, labels, **how):
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), ignore_index=PADDED, **how)


def scales_by(is_whole):
    """A loss that is doubled where a batch is not whole, as a function of its first sequence tells."""
    return lambda outputs, labels: cross_entropy(outputs, labels) * (1.0 if is_whole(labels[0]) else 2.0)


def picks_by_mask(outputs, labels):
    is_there = labels != PADDED
    return cross_entropy(outputs[is_there], labels[is_there])


def picks_by_where(outputs, labels):
    (places,) = torch.where(labels.flatten() != PADDED)
    return outputs.flatten(0, 1)[places].square().mean()


def takes_so_many(outputs, labels):
    num = (labels[0] != PADDED).sum()
    return outputs[:, :num].square().mean()


def repeats(outputs, labels):
    return outputs.mean(1).repeat_interleave((labels[:, -1] != PADDED) + 1, dim=0).square().mean()


def repeats_by_name(outputs, labels):
    return torch.repeat_interleave(outputs.mean(1), dim=0, repeats=(labels[:, -1] != PADDED) + 1).square().mean()


def counts(outputs, labels):
    num = torch.bincount((labels == PADDED).long().flatten())
    return cross_entropy(outputs, labels) / len(num)


LOSSES = {
    "equal": scales_by(lambda labels: torch.equal(labels, labels.clamp(min=0))),
    "allclose": scales_by(lambda labels: torch.allclose(labels, labels.clamp(min=0))),
    "item": scales_by(lambda labels: labels.min().item() >= 0),
    "list": scales_by(lambda labels: min(labels.tolist()) >= 0),
    "numpy": scales_by(lambda labels: labels.numpy().min() >= 0),
    "dlpack": scales_by(lambda labels: np.from_dlpack(labels).min() >= 0),
    **{own.__name__: own for own in (picks_by_mask, picks_by_where, takes_so_many, repeats, repeats_by_name, counts)},
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES.keys())
def test_values_are_those_of_each_batch(loss_fn):
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double(), make_batches()
    task = vs.Task(model, batches, loss_fn, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine="vectorized")
    assert runs.engine.startswith("vectorized")
    for i, lr in enumerate(LRS):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        for step, (inputs, labels) in enumerate(batches):
            optimizer.zero_grad()
            loss = loss_fn(own(inputs), labels)
            loss.backward()
            optimizer.step()
            np.testing.assert_allclose(runs.train_loss[step, i], loss.item(), rtol=1e-9)
