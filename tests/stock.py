"""The oracle: an ordinary loop over a deep copy of the model, with torch.optim, one learning rate at a time."""

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

DEVICE = torch.device("cpu")  # the fixture `device` sets it


@dataclass
class Stock:
    """What an ordinary loop gives: losses [step] before each update, and the trained model."""

    losses: np.ndarray
    model: nn.Module


def placed(batch):
    """A batch where models are trained."""
    return pytree.tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf, batch)


@contextmanager
def as_members_draw(model):
    """What a loop on a GPU has to say to draw the masks of attention and of recurrent layers as members do."""
    with ExitStack() as stack:
        if DEVICE.type == "cuda":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def train(task, lr, num_steps, **how):
    """Train a copy of the task's model as people do. The task's optimizer must be a function, its batches a list."""
    return train_in_place(copy.deepcopy(task.model), task, lr, num_steps, **how)


def train_in_place(model, task, lr, num_steps, *, seed=0, accumulation_steps=1, max_grad_norm=None, batches=None):
    """Train a model as people do."""
    model.to(DEVICE)
    optimizer = task.optimizer(model.parameters())
    ratios = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group["lr"] = lr * ratio
    batches = task.batches if batches is None else batches
    torch.manual_seed(seed)
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        total = 0.0
        for k in range(accumulation_steps):
            batch = placed(batches[(step * accumulation_steps + k) % len(batches)])
            with as_members_draw(model):
                if task.training_step is not None:
                    loss = task.training_step(model, batch)
                else:
                    loss = task.loss_fn(model(batch[0]), batch[1])
            total += loss.item() / accumulation_steps
            (loss / accumulation_steps).backward()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        losses.append(total)
    return Stock(np.array(losses), model)


def assert_equal(runs, task, num_steps, *, rtol=1e-9, **how):
    """Hold every member of a sweep against an ordinary loop of its own: losses, parameters and buffers."""
    for i, member in enumerate(runs.members):
        expected = train(task, member.lr, num_steps, seed=member.seed, **how)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=rtol, err_msg=f"losses of member {i}")
        trained = runs.model(i).state_dict()
        for name, value in expected.model.state_dict().items():
            torch.testing.assert_close(
                trained[name], value, rtol=rtol, atol=rtol, msg=lambda m, name=name, i=i: f"{name} of member {i}: {m}"
            )
