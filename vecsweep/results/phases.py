"""A phase of a sweep after another: what was trained when it was taken up again, joined to what was there before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vecsweep._arrays import blank
from vecsweep._types import FloatArray
from vecsweep.results.sweep import Sweep


def join_phases(before: Sweep, now: Sweep, alive: Sequence[int], defaults: Mapping[str, float]) -> Sweep:
    """Put what some members did after what all did before; the others have NaN there, and their last hyperparameters.

    Args:
        before: of all members.
        now: of those that went on.
        alive: their positions among all.
        defaults: the optimizer's own hyperparameters, which held where a phase says nothing of them.
    """
    members = list(before.members)
    ended = sorted(set(range(len(members))) - set(alive))
    for i, member in zip(alive, now.members, strict=True):
        members[i] = member

    def after(
        old: FloatArray | None,  # [row, member]
        new: FloatArray | None,  # [row, member that went on]
        num_rows: tuple[int, int],
        fill: float = np.nan,
        *,
        is_held: bool = False,
    ) -> FloatArray:
        whole = blank(sum(num_rows), len(members), fill)
        if old is not None:
            whole[: num_rows[0]] = old
        if old is not None and is_held:
            whole[num_rows[0] :, ended] = old[-1, ended]
        if new is not None:
            whole[num_rows[0] :, list(alive)] = new
        return whole

    num_steps = len(before.train_loss), len(now.train_loss)
    num_evaluations = len(before.evaluated_at), len(now.evaluated_at)
    return replace(
        now,
        members=tuple(members),
        lr=after(before.lr, now.lr, num_steps, is_held=True),
        train_loss=after(before.train_loss, now.train_loss, num_steps),
        metrics={
            name: after(before.metrics.get(name), now.metrics.get(name), num_evaluations)
            for name in dict.fromkeys((*before.metrics, *now.metrics))
        },
        evaluated_at=np.concatenate([before.evaluated_at, now.evaluated_at]),
        hyper={
            name: after(before.hyper.get(name), now.hyper.get(name), num_steps, defaults[name], is_held=True)
            for name in dict.fromkeys((*before.hyper, *now.hyper))
        },
        norms={
            name: after(before.norms.get(name), now.norms.get(name), num_steps)
            for name in dict.fromkeys((*before.norms, *now.norms))
        },
        phases=(*before.phases, *now.phases),
        steps_per_epoch=before.steps_per_epoch if before.steps_per_epoch is not None else now.steps_per_epoch,
        duration_s=before.duration_s + now.duration_s,
        in_doubt_from=before.in_doubt_from if before.in_doubt_from is not None else now.in_doubt_from,
    )
