"""The finder used right: what it suggests, on a model that it has not touched; and the two usual mistakes.

People who use a sequential finder train at `history["lr"][0]`, which is the first learning rate that was tried, or go
on with the model that the finder has left diverged.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import vecsweep as vs
from vecsweep import Sweep
from vecsweep.cli.demos.stage import Stage
from vecsweep.schedules import exponential
from vecsweep.tasks import mnist

_START_LR, _END_LR = 1e-7, 10.0


def run(stage: Stage) -> dict[str, Any]:
    """Play it, and return what it found."""
    say, epochs, seeds = stage.say, 2, 3
    num_lrs, num_steps = (24, 200) if stage.is_quick else (48, 300)
    built = mnist()
    model = built.model() if not isinstance(built.model, nn.Module) else built.model
    task = replace(built, model=model)
    before = copy.deepcopy(model.state_dict())
    found = vs.range_test(task, start_lr=_START_LR, end_lr=_END_LR, num_lrs=num_lrs, num_steps=num_steps, **stage.how)
    suggestion = found.suggest()
    is_untouched = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    say(f"MNIST, an MLP, Adam: {num_lrs} lrs for {num_steps} steps each, {found.duration_s:.1f} s.")
    say(f"Suggestion: {suggestion}")
    say(f"The model is {'as it was, bit for bit' if is_untouched else 'changed'}.\n")

    first_lr = float(found.lrs[0])
    runs = vs.sweep(task, lrs=[suggestion.lr, first_lr], seeds=seeds, epochs=epochs, **stage.how)
    spoilt = _diverge(task, stage).branch(0, lrs=[suggestion.lr], schedules=["constant"], epochs=epochs)
    accuracy = {
        f"at the suggestion, {suggestion.lr:.3g}": _mean(runs.select(lr=suggestion.lr)),
        f'at history["lr"][0], {first_lr:.3g}': _mean(runs.select(lr=first_lr)),
        "at the suggestion, on a model left diverged": _mean(spoilt),
    }
    say(f"Accuracy on the 10,000 test images after {epochs} epochs, mean of {seeds} seeds (the last: one):")
    for name, value in accuracy.items():
        say(f"  {name:<46} {value:.1%}")
    say(f"{runs.duration_s + spoilt.duration_s:.1f} s.")
    left, right = stage.panels(13, 2)
    found.plot(left)
    right.barh(list(accuracy), [100 * value for value in accuracy.values()], color=["#009E73", "#E69F00", "#D55E00"])
    for i, value in enumerate(accuracy.values()):
        right.text(100 * value, i, f" {value:.1%} ", va="center", ha="left" if value < 0.8 else "right")
    right.invert_yaxis()
    right.set(xlabel=f"accuracy on the test images after {epochs} epochs, %", xlim=(0, 100))
    return {
        "suggestion": suggestion.lr,
        "is_untouched": is_untouched,
        "val_accuracy": accuracy,
        "range_test_s": found.duration_s,
        "duration_s": runs.duration_s + spoilt.duration_s,
        "picture": stage.keep(right, "finder.png"),
    }


def _mean(runs: Sweep) -> float:
    return float(runs.final("val_accuracy").mean())


def _diverge(task: vs.Task, stage: Stage) -> Sweep:
    """Ramp a member's learning rate to the end, as a finder that does not put the weights back leaves its model."""
    ramp = exponential(_START_LR, _END_LR)
    return vs.sweep(task, lrs=[1.0], schedules={"ramp": ramp}, num_steps=100, divergence_factor=None, **stage.how)
