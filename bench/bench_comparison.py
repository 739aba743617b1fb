"""A comparison of learning rates, schedules and seeds, validated each epoch, against one run after another.

The other arm is what people write: a loop over runs, each with a fresh model, torch's optimizer and scheduler, and an
evaluation loop. Both arms have the same data in memory; of the runs one in `SHARE` is timed and its time multiplied.
`deviation` is the largest difference between the validation accuracies, averaged over seeds: seeds shuffle otherwise.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

import vecsweep as vs
from vecsweep.tasks import load_task

LRS = (0.01, 0.02, 0.05, 0.1)
SCHEDULES = ("constant", "one-cycle")
WORKLOADS = {"digits": (8, 10), "digits-cnn": (2, 3)}  # seeds and epochs
SHARE = 4
ROUNDS = 5


@pytest.mark.parametrize("name", list(WORKLOADS))
def bench_comparison(name: str, compare: Compare, tiny: bool) -> None:
    """Time a comparison as a whole, validation and all."""
    num_seeds, epochs = (1, 1) if tiny else WORKLOADS[name]
    task = load_task(name)
    runs = list(itertools.product(LRS, SCHEDULES, range(num_seeds)))

    def ours() -> vs.Sweep:
        return vs.sweep(task, lrs=LRS, schedules=list(SCHEDULES), seeds=num_seeds, epochs=epochs)

    def theirs() -> list[float]:
        return [_train(task, lr, schedule, seed, epochs) for lr, schedule, seed in runs[::SHARE]]

    accuracy = ours().final("val_accuracy")[::SHARE]
    expected = np.where(np.isnan(accuracy), np.nan, theirs())  # a diverged member has no accuracy here
    compare(
        {"vecsweep": ours, "one after another": theirs},
        rounds=ROUNDS,
        scales={"one after another": SHARE},
        deviation=float(abs(np.nanmean(accuracy) - np.nanmean(expected))),
        num_members=len(runs),
        epochs=epochs,
    )


def _train(task: vs.Task, lr: float, schedule: str, seed: int, epochs: int) -> float:
    """Train and validate one run as people do; return its last accuracy."""
    torch.manual_seed(seed)
    assert callable(task.model)
    assert callable(task.optimizer)
    assert task.loss_fn is not None
    batches = copy.copy(task.batches)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = lr
    num_steps = epochs * len(batches)  # type: ignore[arg-type]  # they have a length
    scheduler: LRScheduler = LambdaLR(optimizer, lambda _: 1.0)
    if schedule == "one-cycle":
        scheduler = OneCycleLR(optimizer, lr, num_steps, final_div_factor=4e3, pct_start=0.25)
    accuracy = 0.0
    for _ in range(epochs):
        model.train()
        for inputs, targets in batches:  # type: ignore[union-attr]  # they are iterable
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        num_right = num_samples = 0
        loss = 0.0
        with torch.no_grad():
            for inputs, targets in task.open_validation(0):
                outputs = model(inputs)
                loss += F.cross_entropy(outputs, targets, reduction="sum").item()
                num_right += (outputs.argmax(1) == targets).sum().item()
                num_samples += len(targets)
        accuracy = num_right / num_samples
    return accuracy
