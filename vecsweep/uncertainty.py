"""How far the answer of a race can be trusted: what chance does to it, and what is doubtful about it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vecsweep.race import UNFELT, Race, Scan, is_alike
from vecsweep.results import Sweep
from vecsweep.results.ranking import group_by_setting

LATE = (7 / 8, 15 / 16)  # of a run, where those that are left are measured, too, to see what chance does
_LATEST = 1 + len(LATE)  # evaluations, the one at the end among them
_BAD = 10  # tolerances behind the best


def noise_of(races: Sequence[Sweep], num_steps: int, metric: str, gain: float) -> float:
    """Return what chance does to the difference of two settings, as a share of what training gains.

    Of several seeds it is the standard error over them; of one, the deviation over the last evaluations. It is 0 where
    neither is there to be seen.

    Args:
        races: what was trained.
        num_steps: of a run that came to its end.
        metric: what settings are judged by.
        gain: what training has gained of it.
    """
    spreads = [spread for runs in races if (spread := _spread(runs, num_steps, metric)) is not None]
    return float(np.mean(spreads) / max(gain, 1e-12)) if spreads and gain > 0 else 0.0


def _spread(runs: Sweep, num_steps: int, metric: str) -> float | None:
    """The same in the metric's own unit, of one part of the race; None if fewer than two settings came to its end."""
    if len(runs.train_loss) < num_steps:
        return None
    by_setting = group_by_setting([member.setting for member in runs.members])
    has_ended = (runs.diverged_at >= 0) | (runs.stopped_at >= 0)
    alive = np.array([members for members in by_setting.values() if not has_ended[list(members)].any()])
    if len(alive) < 2:
        return None
    num_seeds = alive.shape[1]
    if num_seeds > 1:
        values = runs.final(metric)[alive]  # [setting, seed]
        return float((values - values.mean(axis=0)).std(axis=1, ddof=1).mean() / math.sqrt(num_seeds))
    if metric == "train_loss" or len(runs.evaluated_at) < _LATEST:
        return None
    last = runs.metrics[metric][-_LATEST:, alive[:, 0]]  # [evaluation, setting]
    return float((last - last.mean(axis=1, keepdims=True)).std(axis=0, ddof=1).mean())


def doubts_of(race: Race, scan: Scan, start: float, metric: str, tolerance: float) -> Iterator[str]:
    """Yield what may be wrong with the answer, in full sentences.

    Args:
        race: which is over.
        scan: of the winner's schedule and hyperparameters.
        start: what untrained weights score.
        metric: what settings are judged by.
        tolerance: how far behind the best is as good, as a share of what training gains.
    """
    winner, gaps = race.winner, race.gaps(start)
    best = race.scores[race.end][winner]
    if start - best <= UNFELT * abs(start):
        yield (
            f"Training hardly gains anything: {metric} comes from {abs(start):.4g} to {abs(best):.4g}. The run may be "
            "too short, the model trained already, or unable to learn this."
        )
    alike = sorted((own for own in gaps if is_alike(own, winner)), key=lambda own: own.lr)
    place = alike.index(winner)
    if race.beyond_edge() is not None and len(alike) > 1:
        edge = "lowest" if place == 0 else "highest"
        is_cliff = place > 0 and scan.cliff is not None and winner.lr * 10**race.strategy.spacing >= scan.cliff
        if not is_cliff:
            yield f"The best, {winner.lr:.3g}, is the {edge} that raced: the true best may lie beyond. Raise `budget`."
    last = race.strategy.rungs[-1]
    if race.end < last:
        yield (
            f"All that were left after {race.end:.0%} of the run diverged later, the best of then among them. Take a "
            "lower learning rate, or clip gradients (`max_grad_norm`)."
            if winner in race.diverged
            else f"All that went on after {race.end:.0%} of the run diverged; {winner.lr:.3g} was the best of those "
            "that were sent home by then. Raise `budget`, or clip gradients (`max_grad_norm`)."
        )
    if place + 1 < len(alike) and math.isinf(gaps[alike[place + 1]]):
        yield (
            f"The best, {winner.lr:.3g}, stands right below {alike[place + 1].lr:.3g}, which diverged. Take a lower "
            "one where the run will differ from this."
        )
    if last < 1.0 and any(not is_alike(own, winner) for own in gaps):
        yield (
            f"What was compared besides the lr was compared after {last:.0%} of the run: what matters later, such as "
            "how a schedule ends, has not shown. Raise `budget`."
        )
    good = [k for k, own in enumerate(alike) if gaps[own] <= _BAD * tolerance]
    if good and any(gaps[own] > _BAD * tolerance for own in alike[good[0] : good[-1]]):
        yield "Good and bad learning rates take turns: the curve is noisy. Raise `seeds`."
