"""Four learning rates on a small regression, and two phases against one learning rate throughout."""

from typing import Any

import vecsweep as vs
from vecsweep import Sweep
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.reports import format_ranking
from vecsweep.tasks import tanh_regression

_LRS = (0.03, 0.01, 0.005, 0.001)


def run(stage: Stage) -> dict[str, Any]:
    """Play it, and return what it found."""
    task, num_seeds, num_epochs = tanh_regression(), 3 if stage.is_quick else 5, 20
    stage.say(f"A regression on 700 rows: {len(_LRS)} lrs, {num_seeds} seeds, {num_epochs} epochs, in one pass.\n")
    runs = vs.sweep(task, lrs=_LRS, seeds=num_seeds, epochs=num_epochs, train_metrics=True, **stage.how)
    stage.say(f"{runs.duration_s:.2f} s ({runs.engine}). Test MSE:")
    ranking = runs.ranking("val_mse")
    stage.say(format_ranking(ranking))
    train = {standing.setting.lr: standing.mean for standing in runs.ranking("train_mse").standings}
    left, right = stage.panels(11, 2)
    runs.plot(left, kind="curves", metric="train_mse")
    stage.drop_legend(left)  # the one at the right says the same
    runs.plot(right, kind="curves", metric="val_mse")
    for axes in (left, right):
        axes.set(yscale="log", ylim=(0.03, 2))
    files = {"picture": stage.keep(right, "regression.png")}

    half = 30
    stage.say(f"\nTwo phases: {half} epochs at 0.03, then copies of that member at 0.03 and at 0.01.")
    first = vs.sweep(task, lrs=[0.03, 0.01], epochs=half, **stage.how)
    phases = first.branch(0, lrs=[0.03, 0.01], epochs=half)
    slow = first.select(lr=0.01).extend(epochs=half)
    found = {
        f"{half} at 0.03, {half} at 0.01": _final(phases, 1),
        f"{2 * half} at 0.03": _final(phases, 0),
        f"{2 * half} at 0.01": _final(slow, 0),
    }
    for name, value in found.items():
        stage.say(f"  {name:<24} test MSE {value:.4f}")
    (axes,) = stage.panels(8)
    for name, (own, i) in zip(found, ((phases, 1), (phases, 0), (slow, 0)), strict=True):
        steps, values = own.curve("val_mse")
        axes.plot(steps / (own.steps_per_epoch or 1), values[:, i], label=f"{name}: {found[name]:.4f}")
    axes.axvline(half, color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="epoch", ylabel="test MSE", yscale="log", title="Two phases against one learning rate throughout")
    axes.legend(title="epochs at lr: MSE at the end")
    files["phases_picture"] = stage.keep(axes, "regression-phases.png")
    rows = [
        {"lr": s.setting.lr, "test_mse": s.mean, "train_mse": train[s.setting.lr], "is_tied": s.is_tied}
        for s in ranking.standings
    ]
    return {"lrs": rows, "phases": found, "duration_s": runs.duration_s, **files}


def _final(runs: Sweep, i: int) -> float:
    return float(runs.final("val_mse")[i])
