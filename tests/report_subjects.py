"""Results that reports are made of in tests, made up, so that their numbers are known."""

import numpy as np

from vecsweep.results import MemberRecord, Sweep

HOSTILE = """</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">"""


def make_runs(
    lrs=(0.01, 0.1, 1.0),
    schedules=("constant", "cosine"),
    seeds=2,
    num_steps=40,
    metrics=("val_loss",),
    diverged=(),
    stopped=(),
    hyper=({},),
):
    """A sweep with made-up losses: those of a member fall to how far its lr is from 0.1, in decades, plus noise.

    Args:
        lrs: the learning rates.
        schedules: names.
        seeds: how many.
        num_steps: of each member.
        metrics: each a tenth above the training loss, four times in the run.
        diverged: members that diverge half-way.
        stopped: members that are stopped half-way.
        hyper: what else members have.
    """
    rng = np.random.default_rng(0)
    half = num_steps // 2
    members = tuple(
        MemberRecord(float(lr), schedule, seed, None, None, dict(own))
        for lr in lrs
        for schedule in schedules
        for own in hyper
        for seed in range(seeds)
    )
    members = tuple(
        member._replace(diverged_at=half if i in diverged else None, stopped_at=half if i in stopped else None)
        for i, member in enumerate(members)
    )
    progress = np.arange(num_steps)[:, None] / num_steps
    own = np.array([member.lr for member in members])
    factor = np.where([m.schedule == "cosine" for m in members], (1 + np.cos(np.pi * progress)) / 2, 1.0)
    floor = 0.2 + 0.5 * np.abs(np.log10(own / 0.1))
    loss = floor + (2.3 - floor) * np.exp(-5 * progress) + 0.01 * rng.standard_normal((num_steps, len(members)))
    loss[half:, [*diverged, *stopped]] = np.nan
    evaluated_at = np.linspace(num_steps // 4, num_steps, 4).astype(int)
    return Sweep(
        members=members,
        lr=own * factor,
        train_loss=loss,
        metrics=dict.fromkeys(metrics, 1.1 * loss[evaluated_at - 1]),
        evaluated_at=evaluated_at,
        steps_per_epoch=num_steps / 4,
        engine="made up",
        duration_s=1.5,
        about={"call": "vecsweep.sweep(task)", "device": "cpu"},
    )
