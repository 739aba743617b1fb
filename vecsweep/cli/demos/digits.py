"""The range test on handwritten digits, a model trained at what it suggests, and if asked a plain loop beside it."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import vecsweep as vs
from vecsweep import RangeTest
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.plain_loop import train_plainly
from vecsweep.cli.range_test import tell_curve, write
from vecsweep.cli.saving import saved_if_stopped
from vecsweep.cli.saying import tell_files
from vecsweep.tasks import digits


def run(stage: Stage) -> dict[str, Any]:
    """Play it, and return what it found."""
    num_lrs, num_steps, epochs = (16, 40, 10) if stage.is_quick else (64, 100, 20)
    plan: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 10.0, "num_lrs": num_lrs, "num_steps": num_steps}
    task, say = digits(), stage.say
    say(f"Handwritten digits: {num_lrs} MLPs, each at its own lr, {num_steps} steps, in one batched pass.\n")
    with saved_if_stopped(stage.folder / "digits.npz"):
        found = vs.range_test(task, **plan, **stage.how)
    files = write(found, stage.folder / "digits.npz", stage.folder / "digits.png")
    document = tell_curve(found, say)
    tell_files(files, say)
    if stage.compares:
        say("\nThe same work again, on batches that are loaded already: batched, and by a plain loop over models:")
        document["comparison"] = _compare(task, plan, found, stage)
    document["trained"] = _train_one(document["suggestion"]["lr"], epochs, stage)
    return {**document, **files}


def _compare(task: vs.Task, plan: dict[str, Any], found: RangeTest, stage: Stage) -> dict[str, Any]:
    """Say how long a plain loop takes for the same range test, and whether it finds the same."""
    same = _with_one_start(task)
    again = vs.range_test(same, **plan, divergence_factor=None, **stage.how)
    started = time.perf_counter()
    losses = train_plainly(same, again.lrs, plan["num_steps"], device=stage.device)
    plain_s = time.perf_counter() - started
    measured = {
        "first_call_s": found.duration_s,
        "batched_s": again.duration_s,
        "plain_loop_s": plain_s,
        "ratio": plain_s / again.duration_s,
        "num_threads": torch.get_num_threads(),
        "median_deviation": float(np.nanmedian(np.abs(again.train_loss / losses - 1))),
    }
    stage.say(
        "{batched_s:.2f} s batched, now that all is set up ({first_call_s:.2f} s the first time); {plain_loop_s:.2f} s "
        "by the plain loop, {ratio:.1f} times as long.\nPyTorch's CPU threads: {num_threads}. The losses of the two "
        "differ by {median_deviation:.0e} (relative; median over all steps).\n".format(**measured)
    )
    return measured


def _with_one_start(task: vs.Task) -> vs.Task:
    """The task with weights and batches that are there already, so that whoever trains it gets the same of both."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = task.model if isinstance(task.model, nn.Module) else task.model()
        return replace(task, model=model, batches=list(task.iterate(0)))


def _train_one(lr: float, epochs: int, stage: Stage) -> dict[str, Any]:
    """Train one digits model at a learning rate, and say how well it reads digits that it has not seen."""
    runs = vs.sweep(digits(), lrs=[lr], epochs=epochs, **stage.how)
    accuracy = float(runs.final("val_accuracy")[0])
    stage.say(
        f"One model, trained at lr {lr:.3g} for {epochs} epochs ({runs.duration_s:.2f} s), reads {accuracy:.1%} "
        "of the 360 held-out digits right."
    )
    return {"lr": lr, "epochs": epochs, "test_accuracy": accuracy}
