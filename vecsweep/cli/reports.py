"""What the command line says of results, as text for people and as documents for JSON. Nothing here prints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vecsweep._words import cell, counted
from vecsweep.checking import CheckReport
from vecsweep.cli.timing import Speed
from vecsweep.results import Answer, RangeTest, Sweep
from vecsweep.results.ranking import Ranking
from vecsweep.suggest import Suggestion

_MAX_RANKED = 24
_MAX_ROWS = 16  # of a table of learning rates
_PURPOSES = {  # by rule
    "basin": "the middle of those nearly as good as the best, for runs about as long",
    "lowest": "the best of all, by so little that chance may choose it",
    "third_of_largest_stable": "a third of the largest that trains: for a schedule that rises to it and falls",
    "quarter_of_largest_stable": "a quarter of it: likewise, where runs differ much",
    "valley": "on the way down, before the lowest: what fastai takes",
    "steepest": "where the loss falls fastest: what torch-lr-finder and Lightning take; often too low",
    "slide": "as high as the loss does not move steeply: fastai's boldest",
    "minimum": "a tenth of the lr at the lowest loss: the safe one of a ramp",
}


def format_curve(found: RangeTest) -> str:
    """Return a table of learning rates, evenly picked, with the loss that each leads to."""
    lrs, scores = found.lrs, found.scores
    picked = np.linspace(0, len(lrs) - 1, min(_MAX_ROWS, len(lrs))).round().astype(int)
    rows = [f"{lrs[i]:>9.3g}  {cell(scores[i]):>8}  {_divergence(found, i)}".rstrip() for i in picked]
    return "\n".join((f"{'lr':>9}  {'loss':>8}  diverged", *rows))


def format_suggestions(suggestions: dict[str, Suggestion], taken: Suggestion, *, has_all: bool = False) -> str:
    """Return the suggestion, what is doubtful about it, and if asked those of the other rules."""
    lines = [
        f"Suggestion: lr {taken.lr:.3g} ({taken.rule}: {_PURPOSES[taken.rule]}), with loss {taken.loss:.3g}.",
        *(f"  Doubt: {doubt}" for doubt in taken.doubts),
    ]
    others = [(rule, answer) for rule, answer in suggestions.items() if rule != taken.rule]
    if has_all:
        width = max(len(rule) for rule, _ in others)
        lines.append("What other rules say:")
        lines += [f"  lr {answer.lr:<9.3g} {rule:<{width}}  {_PURPOSES[rule]}" for rule, answer in others]
    return "\n".join(lines)


def describe_range_test(
    found: RangeTest, suggestions: dict[str, Suggestion], taken: Suggestion | None
) -> dict[str, Any]:
    """Return what a range test found, for JSON; `taken` is None if every learning rate diverged."""
    return {
        "method": found.method,
        "lrs": found.lrs.tolist(),
        "losses": found.scores.tolist(),
        "members": [member.as_row() for member in found.members],
        "suggestion": None if taken is None else asdict(taken),
        "suggestions": {rule: asdict(answer) for rule, answer in suggestions.items()},
        "engine": found.engine,
        "in_doubt_from": found.in_doubt_from,
        "duration_s": found.duration_s,
    }


def describe_answer(answer: Answer) -> dict[str, Any]:
    """Return which learning rate was found, for JSON."""
    return {
        "lr": answer.lr,
        "interval": list(answer.interval),
        "schedule": answer.schedule,
        "hyper": answer.hyper,
        "doubts": list(answer.doubts),
        "metric": answer.metric,
        "start": answer.start,
        "num_steps": answer.num_steps,
        "budget": answer.budget,
        "cost": answer.cost,
        "noise": answer.noise,
        "mattered": {name: {str(value): gap for value, gap in own.items()} for name, own in answer.mattered().items()},
        "trials": [
            {
                "lr": trial.setting.lr,
                "schedule": trial.setting.schedule,
                **dict(trial.setting.hyper),
                "rungs": list(trial.rungs),
                "scores": list(trial.scores),
                "gap": trial.gap,
            }
            for trial in answer.trials
        ],
    }


def format_run(runs: Sweep) -> str:
    """Return how long a run took, how its members were stepped, and whether its numbers are in doubt."""
    line = f"{runs.duration_s:.2f} s for {counted(len(runs.train_loss), 'step')} ({runs.engine})."
    if runs.in_doubt_from is None:
        return line
    return f"{line} The numbers from step {runs.in_doubt_from} on are in doubt; the warning above says why."


def format_ranking(ranking: Ranking) -> str:
    """Return a table of the settings, best first, no longer than a screen."""
    lines = str(ranking).splitlines()
    head, rows, last = lines[0], lines[1:-1], lines[-1]
    left_out = len(rows) - _MAX_RANKED
    more = [f"  and {left_out} worse"] if left_out > 0 else []
    return "\n".join((head, *rows[:_MAX_RANKED], *more, last))


def format_members(runs: Sweep) -> str:
    """Return a table of members, with what each came to."""
    names = ["train_loss", *runs.metrics]
    final = {name: runs.final(name) for name in names}
    rows = []
    for i, member in enumerate(runs.members):
        values = "  ".join(f"{cell(final[name][i]):>12}" for name in names)
        end = "" if member.diverged_at is None else f"  diverged at step {member.diverged_at}"
        rows.append(f"{i:>3}  {member.lr:>9.4g}  {values}{end}")
    return "\n".join((f"{'#':>3}  {'lr':>9}  {'  '.join(f'{name:>12}' for name in names)}", *rows))


def describe_sweep(runs: Sweep, ranking: Ranking) -> dict[str, Any]:
    """Return what a sweep compared, for JSON."""
    names = ("train_loss", *runs.metrics)
    final = {name: runs.final(name) for name in names}
    return {
        "metric": ranking.metric,
        "mode": ranking.mode,
        "confidence": ranking.confidence,
        "ranking": [
            {**asdict(standing), "setting": {**asdict(standing.setting), "hyper": dict(standing.setting.hyper)}}
            for standing in ranking.standings
        ],
        "members": [
            {**member.as_row(), **{name: float(values[i]) for name, values in final.items()}}
            for i, member in enumerate(runs.members)
        ],
        "engine": runs.engine,
        "in_doubt_from": runs.in_doubt_from,
        "duration_s": runs.duration_s,
    }


def describe_check(report: CheckReport) -> dict[str, Any]:
    """Return what a check found, for JSON."""
    return {
        "is_equal": report.is_equal,
        "verdict": report.verdict,
        **asdict(report),
        "without_effect": [asdict(deviation) for deviation in report.without_effect],
    }


def format_speeds(speeds: Sequence[Speed], best: Speed) -> str:
    """Return a table of ways of stepping, and the options that ask for the best."""
    width = max(len(_way(speed)) for speed in speeds)
    rows = [
        f"{_way(speed):<{width}}  {speed.start_s:>7.2f}  {1e3 * speed.step_s:>9.3g}  {speed.ratio:>7.2f}  "
        f"{_from(speed.from_steps)}".rstrip()
        for speed in speeds
    ]
    options = f"engine={best.engine!r}"
    if best.engine == "vectorized":
        options += f", chunk_size={best.chunk_size}, compile={best.is_compiled}"
    header = f"{'':<{width}}  {'start s':>7}  {'step ms':>9}  {'speedup':>7}"
    return "\n".join((header, *rows, f"Best in a long run: {options}"))


def _way(speed: Speed) -> str:
    if speed.engine != "vectorized":
        return {"sequential": "one after another"}.get(speed.engine, speed.engine)
    return f"batched by {speed.chunk_size}{', compiled' if speed.is_compiled else ''}"


def _from(num_steps: int | None) -> str:
    if num_steps == 0:
        return ""
    return "never pays" if num_steps is None else f"pays from {num_steps:,} steps on"


def _divergence(found: RangeTest, i: int) -> str:
    """Say when members at the i-th learning rate diverged; nothing if none did."""
    if found.method == "ramp":  # a member goes over all learning rates, one a step
        of_seeds = np.where(found.diverged_at <= i, found.diverged_at, -1)
    else:
        of_seeds = found.diverged_at.reshape(len(found.lrs), -1)[i]
    steps = of_seeds[of_seeds >= 0]
    if steps.size == 0:
        return ""
    share = f" ({steps.size} of {of_seeds.size} seeds)" if of_seeds.size > 1 else ""
    return f"at step {steps.min()}{share}"
