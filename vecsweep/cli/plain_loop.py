"""The loop that people write, one model after another: what a speed is held against wherever one is told.

Nothing of the engines is in it: a copy of the model, torch.optim as the task has it, the task's batches, `zero_grad`,
`backward`, `step`. Losses stay on the device until a model is trained. `check` has a loop of its own, whose random
streams are those of a sweep; swapping them would take time here.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from vecsweep._types import FloatArray, Precision
from vecsweep.several import as_one
from vecsweep.task import Task

_STEPS_TIMED = 3
_ROUNDS = 2
_HARMLESS_LR = 1e-6


def train_plainly(
    task: Task, lrs: Sequence[float] | FloatArray, num_steps: int, *, device: torch.device | str | None = None
) -> FloatArray:
    """Train a model at each learning rate, one after another; nothing of the task is changed.

    Args:
        task: what is trained.
        lrs: of the models.
        num_steps: of each; the batches start over when they run out.
        device: where models train; None for where the task's own is.

    Returns:
        The losses before each update, `[step, lr]`.
    """
    with torch.random.fork_rng():
        curves = [torch.stack(list(islice(_steps(task, float(lr), device, None), num_steps))) for lr in lrs]
    losses: FloatArray = torch.stack(curves, dim=1).double().cpu().numpy()
    return losses


def time_step(task: Task, *, device: torch.device | str | None = None, precision: Precision | None = None) -> float:
    """Time a step of one model, in seconds: the least of some rounds, as each engine's steps are timed.

    Args:
        task: what is trained; nothing of it is changed.
        device: where the model trains; None for where the task's own is.
        precision: of autocast; None for the model's own.
    """
    with torch.random.fork_rng():
        steps = _steps(task, _HARMLESS_LR, device, precision)
        rounds = [_seconds(islice(steps, _STEPS_TIMED)) for _ in range(1 + _ROUNDS)]
        return min(rounds[1:]) / _STEPS_TIMED


def _seconds(steps: Iterator[Tensor]) -> float:
    started = time.perf_counter()
    float(list(steps)[-1])  # waits for the device
    return time.perf_counter() - started


def _steps(task: Task, lr: float, device: torch.device | str | None, precision: Precision | None) -> Iterator[Tensor]:
    """Train one model for as long as it is asked to; yield its losses before each update."""
    torch.manual_seed(0)
    model, optimizer = _copy(task, device)
    first_lr = optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group["lr"] *= lr / first_lr
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    while True:
        for batch in task.iterate(0):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=precision is not None):
                loss = task.loss(model, _move(batch, device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            yield loss.detach()


def _copy(task: Task, device: torch.device | str | None) -> tuple[nn.Module, Optimizer]:
    """A model and an optimizer over its parameters, neither of them the task's."""
    if isinstance(task.optimizer, Optimizer):
        assert isinstance(task.model, nn.Module)
        model, template = copy.deepcopy((task.model, task.optimizer))  # together, so that one holds the other's
        return model.to(device), template
    assert callable(task.optimizer)  # a Task has one
    model = (copy.deepcopy(task.model) if isinstance(task.model, nn.Module) else task.model()).to(device)
    return model, as_one(task.optimizer(model.parameters()))


def _move(batch: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device, non_blocking=True), batch)
