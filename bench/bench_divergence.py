"""Rules that say when a member diverges, held against members that were trained to the end whatever became of them.

A rule is to end nobody who would have ended well, and to see soon who is lost. Each problem of `cliffs.py` is trained
once, across its cliff and with no rule; every rule is then asked when it would have ended each member. The rows
`together` count over all problems that ran in this call.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import cliffs
import numpy as np
import pytest
import torch
from cliffs import PROBLEMS, Curves, FloatArray, Problem
from conftest import Record
from numpy.typing import NDArray

from vecsweep._engine.members.divergence import FIRST_BATCHES, GRACE, WINDOW, Fate, ceiling_of

_FACTOR = 5.0  # the default of `divergence_factor`
_GOOD = 0.02  # regret
_TOTALS: dict[str, Counter[str]] = {}

Ends = NDArray[np.int64]  # [lr, seed], the step at which a rule ends a member; -1 for never


def _ours(curves: Curves) -> Ends:
    """The library's own function, step by step."""
    num_steps, num_lrs, num_seeds = curves.loss.shape
    ends = np.full((num_lrs, num_seeds), -1)
    for seed in range(num_seeds):
        ceiling = ceiling_of(torch.from_numpy(curves.untrained[:FIRST_BATCHES, seed]), _FACTOR)
        fate = Fate.start(torch.device("cpu"), ceiling).select(torch.zeros(num_lrs, dtype=torch.int64))
        for step in range(num_steps):
            was_alive = fate.alive
            fate = fate.after(torch.from_numpy(curves.loss[step, :, seed]))
            ends[(was_alive & ~fate.alive).numpy(), seed] = step
    return ends


def _first_above(curves: Curves) -> Ends:
    """The rule before: the first loss above `best + (factor - 1) * |first loss|`."""
    best = np.fmin.accumulate(np.concatenate([np.full_like(curves.loss[:1], np.inf), curves.loss[:-1]]))
    return _first(~(curves.loss <= best + (_FACTOR - 1) * np.abs(curves.loss[0])))


def _staying(
    *, factor: float = _FACTOR, window: int = WINDOW, grace: int = GRACE, num_first: int = FIRST_BATCHES
) -> Callable[[Curves], Ends]:
    """The library's rule with other numbers."""

    def rule(curves: Curves) -> Ends:
        first = curves.untrained[:num_first]
        return _stays_above(curves.loss, first.mean(0) + (factor - 1) * np.abs(first).mean(0), window, grace)

    return rule


def _own_first(curves: Curves) -> Ends:
    """The scale taken from the member's own first four losses, in which an explosion at step 1 is the scale."""
    first = curves.loss[:FIRST_BATCHES]
    return _stays_above(curves.loss, first.mean(0) + (_FACTOR - 1) * np.abs(first).mean(0), WINDOW, GRACE)


def _stays_above(loss: FloatArray, ceiling: FloatArray, window: int, grace: int) -> Ends:
    streak, is_over = np.zeros(loss.shape[1:], int), np.zeros(loss.shape, bool)
    for step, own in enumerate(loss):
        streak = np.where((own > ceiling) & (step >= grace), streak + 1, 0)
        is_over[step] = (streak >= window) | ~np.isfinite(own)
    return _first(is_over)


def _first(is_over: NDArray[np.bool_]) -> Ends:
    return np.where(is_over.any(axis=0), is_over.argmax(axis=0), -1)


RULES: dict[str, Callable[[Curves], Ends]] = {
    "ours": _ours,
    "the first loss above (before)": _first_above,
    "scale of its own first 4": _own_first,
    "of 1 untrained loss": _staying(num_first=1),
    "of 8 untrained losses": _staying(num_first=8),
    "no grace": _staying(grace=0),
    "grace 32": _staying(grace=32),
    "window 8": _staying(window=8),
    "window 32": _staying(window=32),
    "factor 2": _staying(factor=2.0),
    "factor 10": _staying(factor=10.0),
}


def _counts(curves: Curves, ends: Ends) -> Counter[str]:
    """Count what a rule does, apart from members whose loss was not finite before it spoke, which end anyhow."""
    num_steps = len(curves.loss)
    blown = _first(~np.isfinite(curves.loss))
    is_ended = (ends >= 0) & ((blown < 0) | (ends < blown))
    tail = curves.loss[-max(1, num_steps // 10) :].mean(axis=0)
    start = curves.untrained.mean(axis=0)
    is_lost = (blown < 0) & (tail > start + np.abs(start))
    spent = np.where(ends < 0, num_steps, ends + 1)
    return Counter(
        members=curves.regret.size,
        ended=int(is_ended.sum()),
        ended_good=int((is_ended & (curves.regret <= _GOOD)).sum()),
        ended_better_than_start=int((is_ended & (blown < 0) & (curves.gain > 0)).sum()),
        lost=int(is_lost.sum()),
        lost_seen=int((is_lost & is_ended).sum()),
        ended_share_of_steps=float((spent / num_steps)[is_ended].sum()),
    )


def _unmoved_ended(curves: Curves, rule: Callable[[Curves], Ends]) -> Iterator[float]:
    """The share of members without a step that a rule ends, had their run begun at another place in the batches."""
    num_steps = len(curves.loss) // 3
    for begin in range(2 * num_steps):
        part = curves.untrained[begin : begin + num_steps]
        still = Curves(curves.lrs[:1], part[:, None], part, curves.regret[:1], curves.gain[:1])
        yield float((rule(still) >= 0).mean())


@pytest.mark.parametrize("problem", PROBLEMS)
def bench_cliff(problem: str, record: Record, tiny: bool) -> None:
    """Ask every rule of a problem's members."""
    curves = _train(PROBLEMS[problem], tiny)
    for name, rule in RULES.items():
        counts = _counts(curves, rule(curves))
        _TOTALS.setdefault(name, Counter()).update(counts)
        if name in ("ours", "the first loss above (before)"):
            record(name=f"{problem}: {name}", **_shown(counts))


@pytest.mark.parametrize("name", RULES)
def bench_together(name: str, record: Record) -> None:
    """Count over the problems."""
    if name in _TOTALS:
        record(name=f"together: {name}", **_shown(_TOTALS[name]))


@pytest.mark.parametrize("num_first", [1, 2, 4, 8])
def bench_unmoved(num_first: int, record: Record, tiny: bool) -> None:
    """Members whose weights do not move, on batches of one sample: by how many first losses are they judged rightly."""
    curves = _train(PROBLEMS["polynomial one at a time sgd constant"], tiny)
    shares = list(_unmoved_ended(curves, _staying(num_first=num_first)))
    record(name=f"unmoved, by {num_first} losses", unmoved_ended=float(np.mean(shares)))


def _train(problem: Problem, tiny: bool) -> Curves:
    """Train a problem's members, few of them and not for long if that is only to see that it works."""
    if tiny:
        problem = replace(problem, num_steps=40, span=(problem.span[1] / 3, problem.span[1]))
    try:
        return cliffs.train(problem)
    except ValueError as error:
        if "Fetch it" not in str(error):
            raise
        pytest.skip(str(error))


def _shown(counts: Counter[str]) -> dict[str, float]:
    """The counts, and the share of their steps that those who ended had taken."""
    shown = dict(counts)
    total = shown.pop("ended_share_of_steps")
    return shown | {"share_of_steps": total / max(1, shown["ended"])}
