"""What a report of each kind of result holds: the answer, what it rests on, all members, how it came about."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vecsweep._types import Mode
from vecsweep._words import counted
from vecsweep.report.against_lr import chart_final, chart_range_test, table_rules
from vecsweep.report.blocks import Block, Page, Table
from vecsweep.report.curves import chart_curves
from vecsweep.report.document import write_page
from vecsweep.report.members import describe_run, table_members
from vecsweep.report.plans import chart_plans
from vecsweep.report.race import chart_race, table_trials
from vecsweep.report.settings import chart_heatmaps, chart_ranking, table_ranking, table_sensitivity
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Ranking
from vecsweep.suggest import Suggestion
from vecsweep.suggest.basin import Basin

if TYPE_CHECKING:
    from vecsweep.results.answer import Answer
    from vecsweep.results.range_test import RangeTest


def report_sweep(
    runs: Curves, path: str | os.PathLike[str], *, metric: str | None = None, mode: Mode | None = None
) -> Path:
    """Write the report of a sweep; see `Sweep.to_html`."""
    ranking = runs.ranking(metric, mode)
    parts = [("", runs)]
    blocks = [
        chart_final(runs, ranking, _basin_of_best(runs, ranking)),
        chart_curves(parts, metric),
        chart_ranking(ranking),
        table_ranking(ranking),
        table_sensitivity(runs, ranking),
        chart_heatmaps(runs, ranking),
        chart_plans(parts),
        table_members(parts),
        describe_run(parts),
    ]
    remarks = _remarks(parts)
    if num := int((runs.diverged_at >= 0).sum()):  # which in a range test is what it is for
        remarks.append(f"{num} of {counted(len(runs.members), 'member')} diverged.")
    page = Page(title="Sweep", answer=_answer_of(ranking, runs), remarks=remarks, blocks=_those(blocks))
    return write_page(page, path)


def report_range_test(found: "RangeTest", path: str | os.PathLike[str]) -> Path:
    """Write the report of a range test; see `RangeTest.to_html`."""
    suggestions = _suggestions(found)
    basin = _basin(found, "train_loss", None) if found.method == "grid" else None
    parts: list[tuple[str, Curves]] = [("", found)]
    blocks = [
        chart_range_test(found, suggestions, basin),
        table_rules(suggestions) if suggestions else None,
        chart_curves(parts, "train_loss"),
        chart_plans(parts) if found.method == "ramp" else None,
        table_members(parts),
        describe_run(parts),
    ]
    if suggestions:
        answer = f"Train at a learning rate of {suggestions[0].lr:.3g}, which the rule {suggestions[0].rule!r} suggests"
        answer += f"; from {basin.low:.3g} to {basin.high:.3g} it is nearly as good." if basin is not None else "."
        remarks = [*suggestions[0].doubts, *_remarks(parts)]
    else:
        answer = f"Every learning rate diverged, from {found.lrs[0]:.3g} up. Test lower ones."
        remarks = _remarks(parts)
    page = Page(
        title=f"Learning rate range test ({found.method})", answer=answer, remarks=remarks, blocks=_those(blocks)
    )
    return write_page(page, path)


def report_answer(answer: "Answer", path: str | os.PathLike[str]) -> Path:
    """Write the report of an answer; see `Answer.to_html`."""
    parts = [
        (f"{i}: {counted(len(runs.members), 'member')}, {counted(len(runs.train_loss), 'step')}", runs)
        for i, runs in enumerate(answer.runs, start=1)
    ]
    longest_first = sorted(parts, key=lambda part: -len(part[1].train_loss))
    blocks: list[Block | None] = [
        chart_race(answer),
        table_trials(answer),
        *_tables_of_what_mattered(answer),
        chart_curves(longest_first, answer.metric if answer.metric != "train_loss" else None),
        chart_plans(longest_first),
        table_members(parts),
        describe_run(
            parts,
            {
                "the run": f"{counted(answer.num_steps, 'step')} of {answer.schedule!r}",
                "cost": f"{answer.cost:.2g} runs of one member; {answer.budget:.2g} were allowed",
            },
        ),
    ]
    low, high = answer.interval
    held = "".join(f", {name} {value:.4g}" for name, value in answer.hyper.items())
    told = (
        f"Train at a learning rate of {answer.lr:.3g}{held}, for {counted(answer.num_steps, 'step')} of "
        f"{answer.schedule!r}; from {low:.3g} to {high:.3g} it is as good."
    )
    page = Page(
        title="Which learning rate", answer=told, remarks=[*answer.doubts, *_remarks(parts)], blocks=_those(blocks)
    )
    return write_page(page, path)


def _those(blocks: Sequence[Block | None]) -> list[Block]:
    return [block for block in blocks if block is not None]


def _answer_of(ranking: Ranking, runs: Curves) -> str:
    best = ranking.best
    if np.isnan(best.mean):
        return (
            f"No setting came to its end with all {ranking.repeat}s, from lr {min(m.lr for m in runs.members):.3g} up."
        )
    if len(ranking.standings) == 1:
        return f"{best.setting}: {ranking.metric} {best.mean:.4g}."
    settings = counted(len(ranking.standings), "setting")
    told = f"Best of {settings} by {ranking.metric}: {best.setting}, with {best.mean:.4g}"
    if ranking.num_seeds == 1 or ranking.are_seeds_alike:
        return f"{told}."
    seeds, others = counted(ranking.num_seeds, ranking.repeat), counted(len(ranking.tied) - 1, "other")
    return f"{told}. By {seeds}, {others} cannot be told from it."


def _basin_of_best(runs: Curves, ranking: Ranking) -> Basin | None:
    best = ranking.best.setting
    own = runs.select(schedule=best.schedule, **dict(best.hyper))
    return _basin(own, ranking.metric, ranking.mode) if len({member.lr for member in own.members}) > 1 else None


def _basin(runs: Curves, metric: str, mode: Mode | None) -> Basin | None:
    try:
        return runs.basin(metric, mode)
    except ValueError:  # a seed of each learning rate diverged
        return None


def _suggestions(found: "RangeTest") -> list[Suggestion]:
    """What the rules say, the default first; those that find nothing are left out."""
    try:
        first = found.suggest()
    except ValueError:  # every learning rate diverged
        return []
    others = []
    for rule in found.rules:
        try:
            others.append(found.suggest(rule))
        except ValueError:  # the curve is too short for it
            continue
    return [first, *(own for own in others if own.rule != first.rule)]


def _tables_of_what_mattered(answer: "Answer") -> list[Table]:
    rows = [(name, str(value), 100 * gap) for name, own in answer.mattered().items() for value, gap in own.items()]
    if not rows:
        return []
    return [
        Table(
            title="What mattered",
            note="How far each is behind the best at the best of the rest, as a share of what training gains.",
            columns=("what", "value", "behind, %"),
            rows=rows,
            file="mattered.csv",
        )
    ]


def _remarks(parts: Sequence[tuple[str, Curves]]) -> list[str]:
    """What is to be known about the runs before their numbers are believed."""
    remarks = []
    for name, runs in parts:
        where = f"Part {name}: " if name else ""
        if not runs.is_complete:
            remarks.append(f"{where}Interrupted after {counted(len(runs.train_loss), 'step')}.")
        if runs.in_doubt_from is not None:
            remarks.append(f"{where}From step {runs.in_doubt_from} on the curves may be wrong: a later check failed.")
    return remarks
