"""Activation checkpoints in a batched pass: members against plain loops, in which PyTorch recomputes."""

import numpy as np
import pytest
import stock
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import vecsweep as vs

LRS = (0.02, 0.1)
pytestmark = pytest.mark.usefixtures("float64")


class Blocks(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3), nn.LayerNorm(6)) for _ in range(3)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.way(self.blocks, x))


def without_reentry(blocks, x):
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def with_reentry(blocks, x):
    x = x.clone().requires_grad_()
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=True)
    return x


def with_reentry_of_the_later_ones(blocks, x):
    x = blocks[0](x)
    for block in blocks[1:]:
        x = checkpoint(block, x, use_reentrant=True)
    return x


def first_without_gradients(blocks, x):
    """The first block trains nothing: none of its inputs requires a gradient, and PyTorch only warns of it."""
    return blocks[2](blocks[1](checkpoint(blocks[0], x, use_reentrant=True)))


def in_segments(blocks, x):
    return checkpoint_sequential(list(blocks), 2, x, use_reentrant=False)


def make_task(way):
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 6, generator=generator), torch.arange(8) % 3) for _ in range(3)]
    return vs.Task(Blocks(way), batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "way",
    [without_reentry, with_reentry, with_reentry_of_the_later_ones, first_without_gradients, in_segments],
)
def test_checkpointed_members_are_batched_and_train_as_plain_loops_do(way):
    task = make_task(way)
    runs = vs.sweep(task, lrs=LRS, num_steps=9, engine="vectorized", divergence_factor=None)
    assert runs.engine.startswith("vectorized, traced")
    for i, lr in enumerate(LRS):
        expected = stock.train(task, lr, 9)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)
        for name, p in expected.model.named_parameters():
            torch.testing.assert_close(runs.model(i).get_parameter(name), p, rtol=1e-9, atol=1e-9)


def test_checkpointed_averages_count_twice_as_they_do_in_a_plain_loop():
    task = make_task(without_reentry)
    task.model.blocks.append(nn.BatchNorm1d(6))
    with pytest.warns(vs.FallbackWarning, match=r"a recomputed checkpoint may change 'blocks.3.running_mean' twice"):
        runs = vs.sweep(task, lrs=LRS, num_steps=5, engine="vectorized")
    stock.assert_equal(runs, task, 5)
    assert runs.model(0).blocks[3].num_batches_tracked == 10


def test_checkpoints_of_others_are_as_they_were_after_a_sweep():
    task = make_task(without_reentry)
    before = torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator
    vs.sweep(task, lrs=LRS, num_steps=3, engine="vectorized")
    with pytest.raises(ValueError, match="labels"):
        vs.sweep(vs.Task(task.model, [(torch.ones(8, 6),) * 2], fail, optimizer=task.optimizer), lrs=LRS, num_steps=3)
    assert before == (
        torch.utils.checkpoint.CheckpointFunction,
        torch.utils.checkpoint._checkpoint_without_reentrant_generator,
    )


def fail(outputs, targets):
    raise ValueError("labels")
