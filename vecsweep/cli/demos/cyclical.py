"""Cyclical learning rates: bounds read off a range test of accuracy, then the three policies against constant ones.

Reference:
    Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
"""

from typing import Any

import numpy as np

import vecsweep as vs
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.reports import format_ranking
from vecsweep.schedules import constant, exp_range, triangular, triangular2
from vecsweep.suggest import cyclical_bounds
from vecsweep.tasks import fashion_mnist_sgd


def run(stage: Stage) -> dict[str, Any]:
    """Play it, and return what it found."""
    task, say = fashion_mnist_sgd(), stage.say
    num_lrs, num_steps, num_seeds, epochs_up = (16, 100, 1, 1) if stage.is_quick else (32, 300, 3, 2)
    say(f"Fashion-MNIST, an MLP, SGD: the accuracy that {num_lrs} lrs reach in {num_steps} steps each.")
    found = vs.range_test(
        task, start_lr=1e-6, end_lr=1, num_lrs=num_lrs, num_steps=num_steps, evaluate=True, **stage.how
    )
    accuracy = found.metrics["val_accuracy"][-1]
    bounds = cyclical_bounds(found.lrs, accuracy)
    best_lr = float(found.lrs[np.nanargmax(accuracy)])
    say(
        f"{found.duration_s:.1f} s. Accuracy starts to rise at lr {bounds.base_lr:.3g}, is highest at {best_lr:.3g} "
        f"and falls after {bounds.max_lr:.3g}.\n"
    )
    epochs = 4 * epochs_up  # two cycles; Smith found 2 to 10 epochs good for half a one
    total = epochs * len(task.batches) - 1  # type: ignore[arg-type]  # they have a length
    up: dict[str, Any] = {"base_lr": bounds.base_lr, "max_lr": bounds.max_lr, "step_size": epochs_up}
    iterations = up | {"step_size": total / epochs * epochs_up}
    named = {
        "triangular": triangular(**up, total=epochs),
        "triangular2": triangular2(**up, total=epochs),
        "exp_range": exp_range(**iterations, gamma=0.1 ** (1 / total), total=total),
        f"constant {best_lr:.3g}": best_lr * constant(),
        f"constant {bounds.max_lr:.3g}": bounds.max_lr * constant(),
    }
    runs = vs.sweep(task, lrs=[1.0], schedules=named, seeds=num_seeds, epochs=epochs, **stage.how)
    ranking = runs.ranking("val_accuracy")
    say(format_ranking(ranking))
    say(f"{runs.duration_s:.1f} s for {epochs} epochs ({runs.engine}).")
    left, middle, right = stage.panels(15, 3)
    left.plot(found.lrs, accuracy, marker=".", label="accuracy on the test images")
    for name, lr in (("base_lr", bounds.base_lr), ("max_lr", bounds.max_lr)):
        left.axvline(lr, color="0.5", linestyle="--", linewidth=1)
        left.annotate(f"{name} {lr:.3g}", (lr, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="right")
    left.set(xscale="log", xlabel="learning rate", ylabel="val_accuracy", title=f"After {num_steps} steps at each lr")
    left.grid(visible=True, alpha=0.25)
    runs.plot(middle, kind="plan", metric="lr")
    stage.drop_legend(middle)  # the one at the right says the same
    middle.set(yscale="linear", ylim=(0, 1.05 * bounds.max_lr))
    runs.plot(right, kind="curves", metric="val_accuracy")
    picture = stage.keep(right, "cyclical.png")
    return {
        "base_lr": bounds.base_lr,
        "max_lr": bounds.max_lr,
        "val_accuracy": {standing.setting.schedule: standing.mean for standing in ranking.standings},
        "range_test_s": found.duration_s,
        "duration_s": runs.duration_s,
        "picture": picture,
    }
