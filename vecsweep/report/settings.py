"""How settings compare: the ranking with its intervals, heat maps of two hyperparameters, and sensitivity to the lr."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.report.blocks import Cell, Chart, Figure, Table, Trace, pack
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Ranking, Repeat, Standing
from vecsweep.results.views import describe_value, find_usual, find_varying, find_view, value_of

_MOST_COMPARED = 40  # settings whose intervals are drawn; the table has all
_MOST_NUMBERS = 300  # of cells that are wide enough for their number
_MOST_PAIRS = 10  # of things that vary


def chart_ranking(ranking: Ranking) -> Chart | None:
    """Return the differences to the best setting with their intervals; None where there are none."""
    rows = [
        (name, own) for name, own in zip(ranking.names, ranking.standings, strict=True) if math.isfinite(own.difference)
    ][:_MOST_COMPARED]
    if len(rows) < 2:
        return None
    rows.reverse()  # the best on top
    edge = _edge_of([own for _, own in rows])
    layout = {
        "xaxis": {"title": {"text": f"{ranking.metric}, difference to the best"}, "range": edge, "zeroline": True},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": [name for name, _ in rows],
            "range": [-0.7, len(rows) - 0.3],
            "automargin": True,
        },
        "height": 140 + 22 * len(rows),
        "hovermode": "closest",
    }
    left_out = len(ranking.standings) - len(rows)
    note = (
        f"Settings are compared {ranking.repeat} by {ranking.repeat}; bars are {ranking.confidence:.0%} intervals of "
        "the differences to the best. One that holds 0 is no worse beyond chance."
    )
    note += f" {left_out} more are in the table." if left_out else ""
    alt = f"Differences in {ranking.metric} to the best setting, {rows[-1][0]}, with intervals."
    figure = Figure(traces=_trace_standings(rows, ranking.repeat), layout=layout)
    return Chart(title="Ranking", note=note, alt=alt, figures=[figure])


def _trace_standings(rows: Sequence[tuple[str, Standing]], repeat: Repeat) -> list[Trace]:
    """A point and its interval for each setting, by what chance can tell of it."""
    traces: list[Trace] = []
    for is_tied, name, symbol, color in (
        (True, "the best, and what chance cannot tell from it", "circle", "@0"),
        (False, "worse beyond chance", "diamond", "@1"),
        (None, f"one {repeat}: nothing tells it from chance", "circle-open", "@ink"),
    ):
        own = [(k, standing) for k, (_, standing) in enumerate(rows) if standing.is_tied is is_tied]
        if not own:
            continue
        margins = [0.0 if math.isnan(standing.margin) else standing.margin for _, standing in own]
        traces.append(
            {
                "x": [standing.difference for _, standing in own],
                "y": [k for k, _ in own],
                "error_x": {"type": "data", "array": margins, "color": color, "thickness": 1.5, "width": 4},
                "mode": "markers",
                "marker": {"symbol": symbol, "size": 9, "color": color},
                "name": name,
                "text": [rows[k][0] for k, _ in own],
                "hovertemplate": "%{text}: %{x:.4~g}<extra></extra>",
            }
        )
    return traces


def _edge_of(standings: list[Standing]) -> list[float]:
    """What is to be seen of the differences: a margin that is wide for want of seeds would squash all others."""
    differences = [own.difference for own in standings]
    known = [own.margin for own in standings if math.isfinite(own.margin)]
    reach = float(np.median(known)) if known else 0.0
    low, high = min(0.0, *differences) - 1.5 * reach, max(0.0, *differences) + 1.5 * reach
    margin = 0.03 * (high - low or 1.0)
    return [low - margin, high + margin]


def table_ranking(ranking: Ranking) -> Table:
    """Return the settings from the best to the worst."""
    told = {True: "yes", False: "no", None: ""}
    rows: list[tuple[Cell, ...]] = [
        (
            place,
            name,
            own.mean,
            own.median,
            own.low,
            own.high,
            own.difference,
            own.margin,
            told[own.is_tied],
            own.num_diverged,
        )
        for place, (name, own) in enumerate(zip(ranking.names, ranking.standings, strict=True), start=1)
    ]
    columns = ("place", "setting", f"mean {ranking.metric}", "median", "lowest", "highest")
    return Table(
        title="Settings",
        note=ranking.note,
        columns=(*columns, "to the best", "+-", "as good", "diverged"),
        rows=rows,
        file="settings.csv",
    )


def chart_heatmaps(runs: Curves, ranking: Ranking) -> Chart | None:
    """Return the final metric over each two things that vary, at the best of whatever else does; None of fewer."""
    varying = find_varying([standing.setting for standing in ranking.standings])
    pairs = list(combinations(varying, 2))[:_MOST_PAIRS]
    if not pairs or not math.isfinite(ranking.best.mean):
        return None
    view = find_view(
        runs.final(ranking.metric), find_usual(runs, ranking.metric, runs.final(ranking.metric)), ranking.mode
    )
    figures = [_figure_of_heatmap(ranking, varying, column, row, view) for column, row in pairs]
    note = "The brighter, the better; the best is framed."
    note += " Each cell is the best of whatever else varies." if len(varying) > 2 else ""
    note += " Empty where all that is there diverged."
    alt = f"{ranking.metric} over {' and '.join(pairs[0])}. The best is {ranking.best.setting}."
    return Chart(title="Two hyperparameters", note=note, alt=alt, figures=figures)


def _figure_of_heatmap(
    ranking: Ranking, varying: dict[str, list[Any]], column: str, row: str, view: tuple[float, float]
) -> Figure:
    columns, rows = varying[column], varying[row]
    means: FloatArray = np.full((len(rows), len(columns)), np.nan)
    for own in reversed(ranking.standings):  # the best come last, and stay
        if math.isfinite(own.mean):
            means[rows.index(value_of(own.setting, row)), columns.index(value_of(own.setting, column))] = own.mean
    best = ranking.best.setting
    x, y = columns.index(value_of(best, column)), rows.index(value_of(best, row))
    trace: Trace = {
        "type": "heatmap",
        "z": pack(means),
        "zmin": view[0],
        "zmax": view[1],
        "colorscale": "Viridis",
        "reversescale": ranking.mode == "min",
        "colorbar": {"title": {"text": ranking.metric, "side": "right"}, "thickness": 14, "outlinewidth": 0},
        "texttemplate": "%{z:.3~g}" if means.size <= _MOST_NUMBERS else "",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
    }
    trace["customdata"] = [
        [f"{describe_value(row, own)}, {describe_value(column, other)}" for other in columns] for own in rows
    ]
    trace["hovertemplate"] = "%{customdata}: %{z:.4~g}<extra></extra>"
    frame = {"type": "rect", "x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
    layout = {
        "xaxis": _categories(column, columns),
        "yaxis": {**_categories(row, rows), "automargin": True},
        "shapes": [frame | {"line": {"color": "@1", "width": 3}}],
        "hovermode": "closest",
    }
    return Figure(traces=[trace], layout=layout, name=f"{column} and {row}")


def _categories(name: str, values: list[Any]) -> dict[str, Any]:
    texts = [str(value) if isinstance(value, str) else f"{value:.4g}" for value in values]
    ticks = {"tickmode": "array", "tickvals": list(range(len(values))), "ticktext": texts, "showgrid": False}
    return {"title": {"text": "learning rate" if name == "lr" else name}, "zeroline": False, **ticks}


def table_sensitivity(runs: Curves, ranking: Ranking) -> Table | None:
    """Return for each combination of schedule and hyperparameters how much hangs on the lr; None of a single lr."""
    if len({member.lr for member in runs.members}) < 2:
        return None
    rows: list[tuple[Cell, ...]] = []
    combined = dict.fromkeys((member.schedule, tuple(member.hyper.items())) for member in runs.members)
    for schedule, hyper in combined:
        part = runs.select(schedule=schedule, **dict(hyper))
        name = ", ".join([schedule, *(describe_value(key, value) for key, value in hyper)])
        try:
            gaps, basin = part.gaps(ranking.metric, ranking.mode), part.basin(ranking.metric, ranking.mode)
        except ValueError:  # all diverged
            rows.append((name, None, None, None, None, None, 1.0))
            continue
        best = part.ranking(ranking.metric, ranking.mode).best
        width = math.log10(basin.high / basin.low)
        lost = float(np.clip(gaps[1], 0, 1).mean())
        rows.append((name, best.setting.lr, best.mean, basin.low, basin.high, width, lost))
    return Table(
        title="How much hangs on the learning rate",
        note="The best learning rate of each, those nearly as good as it, and the share of what training gains that is "
        "lost on average over the learning rates tried: 0 if it does not matter which, 1 if hardly any trains.",
        columns=("with", "best lr", f"its {ranking.metric}", "good from", "to", "decades", "lost"),
        rows=rows,
        file="sensitivity.csv",
    )
