"""What each learning rate leads to: of a range test, and of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vecsweep._types import FloatArray
from vecsweep._words import counted
from vecsweep.report.blocks import Chart, Figure, Table, Trace, pack
from vecsweep.report.looks import choose_looks
from vecsweep.report.marks import LR_AXIS, SYMBOLS, band_trace, cross_trace, interval_area, value_axis, vertical_line
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Ranking
from vecsweep.results.views import find_usual, find_view
from vecsweep.suggest import RAMP_SMOOTHING, Suggestion, smooth
from vecsweep.suggest.basin import Basin

if TYPE_CHECKING:
    from vecsweep.results.range_test import RangeTest


def chart_range_test(found: "RangeTest", suggestions: Sequence[Suggestion], basin: Basin | None) -> Chart:
    """Return the loss against the learning rate, with the basin, the cliff and what each rule says.

    Args:
        found: the range test.
        suggestions: of every rule, the default one first.
        basin: the learning rates nearly as good as the best; None of a ramp.
    """
    smoothing = RAMP_SMOOTHING if found.method == "ramp" else 0.0
    curve = smooth(found.scores, smoothing)
    traces = [*_trace_curve(found, curve, smoothing), *_trace_suggestions(suggestions)]
    shapes = [vertical_line(suggestions[0].lr, "@1")] if suggestions else []
    shapes += [] if basin is None else [interval_area(basin.low, basin.high)]
    cliff = find_cliff(found.lrs, curve, float(np.mean(found.train_loss[0])))
    shapes += [] if cliff is None else [vertical_line(cliff, "@ink", "dash", "cliff")]
    if lost := _lrs_lost(found):
        traces.append(cross_trace(lost, "a member diverged"))
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
    layout = {"xaxis": LR_AXIS, "yaxis": value_axis("loss", view), "shapes": shapes}
    figure = Figure(traces=traces, layout=layout, view=view)
    return Chart(title="Loss against learning rate", note=note, alt=alt, figures=[figure])


def _trace_curve(
    found: "RangeTest",
    curve: FloatArray,  # [lr]
    smoothing: float,
) -> list[Trace]:
    """The curve that rules read, the spread over seeds, and of a ramp the losses themselves."""
    by_seed = smooth(found.scores_by_seed, smoothing)
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
    return traces


def _trace_suggestions(suggestions: Sequence[Suggestion]) -> list[Trace]:
    """A point on the curve for each rule."""
    traces: list[Trace] = []
    for i, own in enumerate(suggestions):
        marker: Trace = {"size": 13 if i == 0 else 10, "color": f"@{1 + i % 6}", "symbol": SYMBOLS[i % len(SYMBOLS)]}
        marker["line"] = {"color": "@paper", "width": 1.5}
        name = f"{own.rule}: {own.lr:.3g}" + (" (suggested)" if i == 0 else "")
        traces.append({"x": [own.lr], "y": [own.loss], "mode": "markers", "marker": marker, "name": name})
    return traces


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
        traces.append(cross_trace(sorted(set(lost)), f"a {ranking.repeat} diverged"))
    shapes = [] if basin is None else [interval_area(basin.low, basin.high), vertical_line(basin.lr, "@1")]
    view = find_view(final, find_usual(runs, ranking.metric, final), ranking.mode) if np.isfinite(final).any() else None
    layout = {"xaxis": LR_AXIS, "yaxis": value_axis(f"final {ranking.metric}", view), "shapes": shapes}
    note = (
        f"What members came to at their end; a line is the mean over {ranking.repeat}s, a band from the lowest to the "
        "highest."
    )
    if basin is not None:
        note += (
            f" Shaded for the best setting, {ranking.best.setting}: the learning rates nearly as good as the best, "
            f"{basin.low:.3g} to {basin.high:.3g}, and the steadiest of them, {basin.lr:.3g}."
        )
    alt = f"Final {ranking.metric} against the learning rate. The best is {ranking.best.setting}."
    figure = Figure(traces=traces, layout=layout, view=view)
    return Chart(title="Sensitivity to the learning rate", note=note, alt=alt, figures=[figure])


def _lrs_lost(found: "RangeTest") -> list[float]:
    """Where members diverged: the lr of a grid's, and of a ramp's the one that it had come to."""
    (left,) = np.nonzero(found.diverged_at >= 0)
    steps = found.diverged_at[left] if found.method == "ramp" else 0
    return sorted(set(found.lr[steps, left].tolist()))
