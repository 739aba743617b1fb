"""The range test on handwritten digits, timed against stock PyTorch, and a model trained at what it suggests."""

from typing import Any

import numpy as np
import torch

import vecsweep as vs
from vecsweep import RangeTest
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.range_test import tell_curve, write
from vecsweep.cli.saying import Say, saved_if_interrupted, tell_files
from vecsweep.tasks import digits


def run(stage: Stage) -> dict[str, Any]:
    """Find a learning rate for digits by a range test, and time it."""
    num_lrs, num_steps, epochs = (16, 40, 10) if stage.is_quick else (64, 100, 20)
    plan: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 10.0, "num_lrs": num_lrs, "num_steps": num_steps}
    task, say = digits(), stage.say
    say(f"Handwritten digits: {num_lrs} MLPs, each at its own lr, {num_steps} steps, in one batched pass.\n")
    with saved_if_interrupted(stage.folder / "digits.npz"):
        found = vs.range_test(task, **plan, device=stage.device)
    files = write(found, stage.folder / "digits.npz", stage.folder / "digits.png")
    document = tell_curve(found, say)
    tell_files(files, say)
    say("\nThe same work again, batched, and one member after another on stock PyTorch:")
    again, stock = (vs.range_test(task, **plan, engine=engine, device=stage.device) for engine in _ENGINES)
    document["comparison"] = _compare(found, again, stock, say)
    document["trained"] = _train_one(document["suggestion"]["lr"], epochs, say)
    return {**document, **files}


_ENGINES: tuple[Any, ...] = ("auto", "sequential")


def _compare(found: RangeTest, again: RangeTest, stock: RangeTest, say: Say) -> dict[str, Any]:
    """Say how long stock PyTorch took for the same range test, and whether it found the same."""
    measured = {
        "first_call_s": found.duration_s,
        "batched_s": again.duration_s,
        "sequential_s": stock.duration_s,
        "ratio": stock.duration_s / again.duration_s,
        "num_threads": torch.get_num_threads(),
        "suggested_lr": stock.suggest().lr,
        "median_deviation": float(np.nanmedian(np.abs(found.scores - stock.scores) / stock.scores)),
    }
    say(
        "{batched_s:.2f} s batched, now that all is set up ({first_call_s:.2f} s the first time); {sequential_s:.2f} s "
        "on stock PyTorch, {ratio:.1f} times as long.\nPyTorch's CPU threads: {num_threads}. Stock PyTorch suggests "
        "{suggested_lr:.3g}; its losses differ by {median_deviation:.0e} (relative; median of lrs).\n".format(
            **measured
        )
    )
    return measured


def _train_one(lr: float, epochs: int, say: Say) -> dict[str, Any]:
    """Train one digits model at a learning rate, and say how well it reads digits that it has not seen."""
    runs = vs.sweep(digits(), lrs=[lr], epochs=epochs)
    accuracy = float(runs.final("val_accuracy")[0])
    say(
        f"One model, trained at lr {lr:.3g} for {epochs} epochs ({runs.duration_s:.2f} s), reads {accuracy:.1%} "
        "of the 360 held-out digits right."
    )
    return {"lr": lr, "epochs": epochs, "test_accuracy": accuracy}
