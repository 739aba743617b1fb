"""A race for a learning rate: what each had come to at each rung, and what became of all."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vecsweep.report.blocks import Cell, Chart, Figure, Table, Trace
from vecsweep.report.marks import LR_AXIS, SYMBOLS, cross_trace, interval_area, straight_line, value_axis, vertical_line
from vecsweep.results.trial import Trial
from vecsweep.results.views import RACE_LOG_RATIO, find_view

if TYPE_CHECKING:
    from vecsweep.results.answer import Answer


def chart_race(answer: "Answer") -> Chart:
    """Return the metric against the lr at each rung of the race, a picture for each combination of the rest."""
    figures = []
    combinations = dict.fromkeys((own.setting.schedule, own.setting.hyper) for own in answer.trials)
    winning = (answer.winner.setting.schedule, answer.winner.setting.hyper)
    for combination in sorted(combinations, key=lambda own: own != winning):
        trials = [own for own in answer.trials if (own.setting.schedule, own.setting.hyper) == combination]
        trials.sort(key=lambda own: own.setting.lr)
        name = ", ".join(trials[0].setting.parts[1:])
        figures.append(_figure_of_race(answer, trials, name, is_won=combination == winning))
    low, high = answer.interval
    return Chart(
        title="The race",
        note="What each learning rate had come to when it was measured; those that fell behind went no further. "
        f"Shaded: the interval of those that are as good, {low:.3g} to {high:.3g}. Dotted: untrained.",
        alt=f"{answer.metric} against the learning rate at each rung of the race. The answer is {answer.lr:.3g}.",
        figures=figures,
    )


def _figure_of_race(answer: "Answer", trials: Sequence[Trial], name: str, *, is_won: bool) -> Figure:
    rungs = sorted({rung for trial in answer.trials for rung in trial.rungs})
    traces: list[Trace] = []
    for place, rung in enumerate(rungs):
        points = [(t.setting.lr, t.scores[t.rungs.index(rung)]) for t in trials if rung in t.rungs]
        points = [(lr, score) for lr, score in points if math.isfinite(score)]
        if points:
            x, y = zip(*points, strict=True)
            color = f"@0/{0.3 + 0.7 * (place + 1) / len(rungs):.2f}"
            named = f"after {max(1, round(rung * answer.num_steps))} steps"
            line = {"color": color, "width": 2}
            symbol = {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 9}
            traces.append({"x": x, "y": y, "mode": "lines+markers", "line": line, "marker": symbol, "name": named})
    if lost := [t.setting.lr for t in trials if not math.isfinite(t.scores[-1])]:
        traces.append(cross_trace(lost, "diverged"))
    scores = np.array([score for trial in trials for score in trial.scores] + [answer.start])
    view = find_view(scores, answer.start, answer.mode)
    shapes = [straight_line("y", answer.start, "@ink", "dot")]
    if is_won:
        shapes += [interval_area(*answer.interval), vertical_line(answer.lr, "@1", name=f"answer, {answer.lr:.3g}")]
    layout = {"xaxis": LR_AXIS, "yaxis": value_axis(answer.metric, view, RACE_LOG_RATIO), "shapes": shapes}
    return Figure(traces=traces, layout=layout, view=view, name=name)


def table_trials(answer: "Answer") -> Table:
    """Return what became of each setting in a race."""
    rows: list[tuple[Cell, ...]] = [
        (
            own.setting.lr,
            ", ".join(own.setting.parts[1:]),
            100 * own.rungs[-1],
            own.scores[-1],
            100 * own.gap if math.isfinite(own.gap) else None,
        )
        for own in answer.trials
    ]
    return Table(
        title="Who raced",
        note="How far each was behind the best, as a share of what training had gained; a dash where it diverged.",
        columns=("lr", "with", "trained, % of the run", answer.metric, "behind, %"),
        rows=rows,
        file="race.csv",
    )
