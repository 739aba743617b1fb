"""Schedules as planned and as run: what each setting's updates used, and what those would have that were not taken."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.report.blocks import Chart, Figure, Trace, pack
from vecsweep.report.looks import choose_looks
from vecsweep.report.marks import value_axis
from vecsweep.report.steps import describe_axis, find_ends, find_unit
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Setting

_MOST_POINTS = 400  # of a line


def chart_plans(parts: Sequence[tuple[str, Curves]]) -> Chart:
    """Return the learning rate against the step, and whatever else changes over the run."""
    figures = []
    for part, runs in parts:
        changing = [name for name, values in runs.hyper.items() if (values != values[:1]).any()]
        for name in ("lr", *changing):
            label = "learning rate" if name == "lr" else name
            figures.append(_draw_plan(f"{part}: {label}" if part else label, runs, name, label))
    return Chart(
        title="Schedules",
        note="Drawn through as run, up to where the last member of a setting ended; dotted as planned from there on. "
        "Settings that follow the same course share a line.",
        alt="The learning rate against the step, as planned and as run.",
        figures=figures,
    )


def _draw_plan(title: str, runs: Curves, name: str, label: str) -> Figure:
    unit, ends = find_unit(runs), find_ends(runs)
    courses = _find_courses(runs, name, ends)
    looks = choose_looks([course.setting for course in courses])
    every = max(1, -(-len(runs.lr) // _MOST_POINTS))
    traces: list[Trace] = []
    for course in courses:
        look = looks[course.setting]
        common: Trace = {"dx": every / unit, "mode": "lines", "type": "scatter", "legendgroup": look.name}
        if course.planned is not None:
            start = (course.end - 1) // every
            dotted = {"color": look.color, "width": 1.3, "dash": "dot"}
            ahead = {"x0": start * every / unit, "y": pack(course.planned[::every][start:])}
            traces.append(common | ahead | {"line": dotted, "hoverinfo": "skip"})
        line = {"color": look.color, "width": 2, "dash": look.dash}
        traces.append(common | {"x0": 0, "y": pack(course.run[::every]), "line": line, "name": look.name})
    drawn = np.concatenate([course.run[np.isfinite(course.run)] for course in courses])
    view = (float(drawn.min()), float(drawn.max())) if drawn.size else None
    layout = {
        "xaxis": {"title": {"text": describe_axis(unit)}},
        "yaxis": value_axis(label, view),
    }
    return Figure(traces=traces, layout=layout, name=title)


class _Course(NamedTuple):
    """What a setting's updates used, `[step]`, up to where its last seed ended; and what all of them would have."""

    setting: Setting
    end: int
    run: FloatArray
    planned: FloatArray | None


def _find_courses(runs: Curves, name: str, ends: Sequence[int]) -> list[_Course]:
    """One course for settings that have the same one.

    What a member would have had after its end is read off one that went on: a schedule is a multiple of the lr, so that
    two members of it differ by a factor. It is believed where that holds of all that the member did.
    """
    bands = runs.bands(name)
    whole: dict[str, FloatArray] = {}
    for band in bands:
        if min(ends[i] for i in band.members) == len(runs.lr):
            whole.setdefault(band.setting.schedule, band.mean)
    courses: dict[bytes, _Course] = {}
    for band in bands:
        end = max(ends[i] for i in band.members)
        run, planned = band.mean[:end], None
        other = whole.get(band.setting.schedule)
        if 0 < end < len(runs.lr) and other is not None and other[0]:
            planned = other * (run[0] / other[0])
            planned = planned if np.allclose(planned[:end], run, rtol=1e-6, atol=0, equal_nan=True) else None
        courses.setdefault(run.tobytes(), _Course(band.setting, end, run, planned))
    return list(courses.values())
