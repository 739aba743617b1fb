"""What each learning rate leads to: of a range test, of a sweep, and at each rung of a race."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vecsweep._types import FloatArray
from vecsweep._words import counted
from vecsweep.report.blocks import Cell, Chart, Figure, Table, Trace, pack
from vecsweep.report.looks import choose_looks
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Ranking
from vecsweep.results.views import find_usual, find_view
from vecsweep.suggest import RAMP_SMOOTHING, Suggestion, smooth
from vecsweep.suggest.basin import Basin

if TYPE_CHECKING:
    from vecsweep.results.answer import Answer
    from vecsweep.results.range_test import RangeTest

_LR_AXIS = {"title": {"text": "learning rate"}, "type": "log"}
_LOG_RATIO = 30  # of the highest to the lowest value in view, from which on a value axis begins logarithmic
_AT_TOP = {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top"}  # of a vertical line
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "hexagon", "cross")


def chart_range_test(found: "RangeTest", suggestions: Sequence[Suggestion], basin: Basin | None) -> Chart:
    """Return the loss against the learning rate, with the basin, the cliff and what each rule says.

    Args:
        found: the range test.
        suggestions: of every rule, the default one first.
        basin: the learning rates nearly as good as the best; None of a ramp.
    """
    smoothing = RAMP_SMOOTHING if found.method == "ramp" else 0.0
    curve, by_seed = smooth(found.scores, smoothing), smooth(found.scores_by_seed, smoothing)
    num_seeds = by_seed.shape[1]
    traces: list[Trace] = []
    if num_seeds > 1:
        low, high = np.fmin.reduce(by_seed, axis=1), np.fmax.reduce(by_seed, axis=1)
        traces.append(band_trace(found.lrs, low, high, "@0/0.2") | {"name": f"lowest to highest of {num_seeds} seeds"})
    if smoothing:
        thin = {"color": "@0/0.6", "width": 1}
        traces.append({"x": pack(found.lrs), "y": pack(found.scores), "mode": "lines", "line": thin, "name": "loss"})
    name = f"loss, smoothed ({smoothing:g})" if smoothing else "loss" if num_seeds == 1 else "mean loss"
    look = {"mode": "lines" if smoothing else "lines+markers", "line": {"color": "@0", "width": 2.5}}
    traces.append({"x": pack(found.lrs), "y": pack(curve), "name": name, **look})
    for i, own in enumerate(suggestions):
        marker: Trace = {"size": 13 if i == 0 else 10, "color": f"@{1 + i % 6}", "symbol": _SYMBOLS[i % len(_SYMBOLS)]}
        marker["line"] = {"color": "@paper", "width": 1.5}
        name = f"{own.rule}: {own.lr:.3g}" + (" (suggested)" if i == 0 else "")
        traces.append({"x": [own.lr], "y": [own.loss], "mode": "markers", "marker": marker, "name": name})
    shapes = [*_vertical(suggestions[0].lr, "@1")] if suggestions else []
    shapes += [] if basin is None else _interval(basin.low, basin.high)
    cliff = find_cliff(found.lrs, curve, float(np.mean(found.train_loss[0])))
    shapes += [] if cliff is None else _vertical(cliff, "@ink", "dash", "cliff")
    if lost := _lrs_lost(found):
        traces.append(_crosses(lost, "a member diverged"))
    view = None
    if np.isfinite(curve).any():
        usual = float(np.fmax(np.nanmedian(curve), found.train_loss[0].mean()))
        view = find_view(np.append(curve, found.train_loss[0].mean()), usual, "min")
    note = "The loss that each learning rate leads to"
    note += ", smoothed as rules read it" if smoothing else ""
    note += ". Shaded: those nearly as good as the best" if basin is not None else ""
    note += ". The cliff is the least learning rate above the best that diverged or left the model no better."
    alt = f"Loss against {counted(len(found.lrs), 'learning rate')} from {found.lrs[0]:.3g} to {found.lrs[-1]:.3g}."
    alt += f" Suggested is {suggestions[0].lr:.3g}." if suggestions else " None is suggested."
    layout = {"xaxis": _LR_AXIS, "yaxis": _value_axis("loss", view), "shapes": shapes}
    figure = Figure(traces=traces, layout=layout, view=view)
    return Chart(title="Loss against learning rate", note=note, alt=alt, figures=[figure])


def table_rules(suggestions: Sequence[Suggestion]) -> Table:
    """Return what each rule says, and what is doubtful about it."""
    return Table(
        title="What each rule says",
        note="The first is the one that is suggested; the others are there to be compared.",
        columns=("rule", "lr", "loss there", "doubts"),
        rows=[(own.rule, own.lr, own.loss, " ".join(own.doubts)) for own in suggestions],
        file="rules.csv",
    )


def find_cliff(
    lrs: FloatArray,  # [lr]
    losses: FloatArray,  # [lr], NaN where a member diverged
    start: float,
) -> float | None:
    """Return the least lr above the best whose loss is not below that of untrained weights; None if there is none."""
    if not np.isfinite(losses).any():
        return None
    best = int(np.nanargmin(losses))
    is_bad = ~(losses[best:] < start)
    return float(lrs[best + int(np.argmax(is_bad))]) if is_bad.any() else None


def chart_final(runs: Curves, ranking: Ranking, basin: Basin | None) -> Chart | None:
    """Return the final metric against the lr, a line for each schedule and hyperparameter; None of a single lr.

    Args:
        runs: the sweep.
        ranking: of it.
        basin: of the best setting's schedule and hyperparameters; None where there is none.
    """
    if len({member.lr for member in runs.members}) == 1:
        return None
    final = runs.final(ranking.metric)
    standings = sorted(ranking.standings, key=lambda own: own.setting.lr)
    looks = choose_looks([own.setting for own in standings], without=("lr",))
    traces: list[Trace] = []
    for look in dict.fromkeys(looks.values()):
        own = [standing for standing in standings if looks[standing.setting] == look]
        lrs, mean = np.array([s.setting.lr for s in own]), np.array([s.mean for s in own])
        if ranking.num_seeds > 1:
            low, high = np.array([s.low for s in own]), np.array([s.high for s in own])
            band = band_trace(lrs, low, high, f"{look.color}/0.15")
            traces.append(band | {"legendgroup": look.name})
        line = {"color": look.color, "dash": look.dash, "width": 2}
        named = {"name": look.name, "legendgroup": look.name}
        traces.append({"x": pack(lrs), "y": pack(mean), "mode": "lines+markers", "line": line, **named})
    lost = [own.setting.lr for own in standings if own.num_diverged]
    if lost:
        traces.append(_crosses(sorted(set(lost)), "a seed diverged"))
    shapes = [] if basin is None else [*_interval(basin.low, basin.high), *_vertical(basin.lr, "@1")]
    view = find_view(final, find_usual(runs, ranking.metric, final), ranking.mode) if np.isfinite(final).any() else None
    layout = {"xaxis": _LR_AXIS, "yaxis": _value_axis(f"final {ranking.metric}", view), "shapes": shapes}
    note = "What members came to at their end; a line is the mean over seeds, a band from the lowest to the highest."
    if basin is not None:
        note += (
            f" Shaded for the best setting, {ranking.best.setting}: the learning rates nearly as good as the best, "
            f"{basin.low:.3g} to {basin.high:.3g}, and the steadiest of them, {basin.lr:.3g}."
        )
    alt = f"Final {ranking.metric} against the learning rate. The best is {ranking.best.setting}."
    figure = Figure(traces=traces, layout=layout, view=view)
    return Chart(title="Sensitivity to the learning rate", note=note, alt=alt, figures=[figure])


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


def _figure_of_race(answer: "Answer", trials: Sequence[Any], name: str, *, is_won: bool) -> Figure:
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
            symbol = {"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 9}
            traces.append({"x": x, "y": y, "mode": "lines+markers", "line": line, "marker": symbol, "name": named})
    if lost := [t.setting.lr for t in trials if not math.isfinite(t.scores[-1])]:
        traces.append(_crosses(lost, "diverged"))
    scores = np.array([score for trial in trials for score in trial.scores] + [answer.start])
    view = find_view(scores, answer.start, answer.mode)
    shapes = [_line("y", answer.start, "@ink", "dot")]
    if is_won:
        shapes += [*_interval(*answer.interval), *_vertical(answer.lr, "@1", name=f"answer, {answer.lr:.3g}")]
    layout = {"xaxis": _LR_AXIS, "yaxis": _value_axis(answer.metric, view), "shapes": shapes}
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


def band_trace(
    x: FloatArray,  # [point]
    low: FloatArray,  # [point], NaN in gaps
    high: FloatArray,  # [point]
    color: str,
) -> Trace:
    """Return an area between two curves, a polygon for each stretch without gaps."""
    xs, ys = list[float](), list[float]()
    is_whole = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_whole, [False]]).astype(int)))
    for begin, end in edges.reshape(-1, 2).tolist():
        xs += [*x[begin:end], *x[begin:end][::-1], math.nan]
        ys += [*low[begin:end], *high[begin:end][::-1], math.nan]
    look = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": color, "hoverinfo": "skip"}
    return {"x": pack(xs), "y": pack(ys), **look}


def _value_axis(title: str, view: tuple[float, float] | None) -> dict[str, Any]:
    is_log = view is not None and view[0] > 0 and view[1] > _LOG_RATIO * view[0]
    return {"title": {"text": title}, "type": "log" if is_log else "linear"}


def _lrs_lost(found: "RangeTest") -> list[float]:
    """Where members diverged: the lr of a grid's, and of a ramp's the one that it had come to."""
    (left,) = np.nonzero(found.diverged_at >= 0)
    steps = found.diverged_at[left] if found.method == "ramp" else 0
    return sorted(set(found.lr[steps, left].tolist()))


def _crosses(lrs: Sequence[float], name: str) -> Trace:
    """Crosses at the upper edge, on an axis of their own."""
    marker = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": "@ink"}}
    hover = {"hovertemplate": "%{x:.3~g}<extra>%{fullData.name}</extra>"}
    return {"x": lrs, "y": [0.97] * len(lrs), "yaxis": "y2", "mode": "markers", "marker": marker, "name": name, **hover}


def _line(axis: str, at: float, color: str, dash: str = "solid") -> dict[str, Any]:
    other = "x" if axis == "y" else "y"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", **ends, "line": {"color": color, "width": 1.5, "dash": dash}, "layer": "between"}


def _vertical(lr: float, color: str, dash: str = "solid", name: str = "") -> list[dict[str, Any]]:
    label = {"label": {"text": name, "font": {"color": color}, **_AT_TOP}} if name else {}
    return [_line("x", lr, color, dash) | label]


def _interval(low: float, high: float) -> list[dict[str, Any]]:
    ends = {"x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return [{"type": "rect", **ends, "fillcolor": "@1/0.15", "line": {"width": 0}, "layer": "below"}]
