"""Eight policies of the field on CIFAR-10, in one pass.

Single runs of these policies that were published, 30 epochs each, reached 83.3 % with the constant learning rate and
about 85 % with the exponential one.
"""

from typing import Any

import vecsweep as vs
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.reports import format_ranking
from vecsweep.schedules import Schedule, constant, exponential_decay, multi_step, one_cycle, step_decay, warmup
from vecsweep.tasks import cifar10

_EPOCHS, _WARM = 30, 5


def make_policies() -> dict[str, Schedule]:
    """The eight policies as learning rates over 30 epochs; a shorter run goes through them faster."""
    rest = _EPOCHS - _WARM

    def warmed(then: Schedule) -> Schedule:
        return warmup(_WARM / _EPOCHS, 0.001, 0.04 * then)

    return {
        "constant 0.01": 0.01 * constant(),
        "step": 0.01 * step_decay(16, 0.2, total=_EPOCHS),
        "multi-step": 0.02 * multi_step([10, 20], 0.5, total=_EPOCHS),
        "exponential": 0.04 * exponential_decay(0.885, total=_EPOCHS),
        "warm-up, step": warmed(step_decay(10, 0.2, total=rest)),
        # The fifth milestone of this policy, 25 epochs after the warm-up, is the end of the run.
        "warm-up, multi-step": warmed(multi_step([5, 10, 15, 20], 0.5, total=rest)),
        "warm-up, exponential": warmed(exponential_decay(0.885, total=rest)),
        "one-cycle": 0.04 * one_cycle(),
    }


def run(stage: Stage) -> dict[str, Any]:
    """Play it, and return what it found."""
    epochs, task = (6, cifar10(num_train=2560, num_test=1000)) if stage.is_quick else (_EPOCHS, cifar10())
    named = make_policies()
    size = "2,560 of the 50,000 images" if stage.is_quick else "50,000 images"
    stage.say(f"CIFAR-10, {size}: {len(named)} policies, {epochs} epochs, SGD 0.9, weight decay 5e-4, in one pass.\n")
    runs = vs.sweep(task, lrs=[1.0], schedules=named, epochs=epochs, **stage.how)
    ranking = runs.ranking("val_accuracy")
    stage.say(format_ranking(ranking))
    stage.say(f"{runs.duration_s:.0f} s ({runs.engine}).")
    left, right = stage.panels(13, 2)
    runs.plot(left, kind="plan", metric="lr")
    stage.drop_legend(left)  # the one at the right says the same
    runs.plot(right, kind="curves", metric="val_accuracy")
    picture = stage.keep(right, "policies.png")
    runs.save(stage.folder / "policies.npz")
    found = {standing.setting.schedule: standing.mean for standing in ranking.standings}
    return {"val_accuracy": found, "epochs": epochs, "duration_s": runs.duration_s, "picture": picture}
