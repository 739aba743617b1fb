"""Curves against the step as the page draws them: it averages over seeds and smooths; here they are thinned out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vecsweep._types import FloatArray
from vecsweep._words import counted
from vecsweep.report.blocks import CurveChart, pack
from vecsweep.report.looks import choose_looks
from vecsweep.report.marks import is_wide
from vecsweep.report.steps import describe_axis, find_ends, find_unit
from vecsweep.report.thinning import extremes, find_stretch, highest, lowest, means
from vecsweep.results.curves import Curves
from vecsweep.results.member import MemberRecord
from vecsweep.results.ranking import Band
from vecsweep.results.views import describe_seed, find_mode, find_usual, find_view, name_metric

_WINDOW = 50  # part of the run that the training loss is first averaged over
_WENT_ON, _DIVERGED, _STOPPED = range(3)  # how a member ended, as the page's script has it


def chart_curves(parts: Sequence[tuple[str, Curves]], metric: str | None) -> CurveChart:
    """Return the curves of sweeps, each under a name.

    Args:
        parts: in the order of the chooser.
        metric: that is shown first; None as in `Sweep.final`, which holds where a sweep lacks it, too.
    """
    described = []
    for name, runs in parts:
        is_there = metric in ("train_loss", *runs.metrics, *runs.norms)
        described.append(describe_part(name, runs, metric if is_there else None))
    note = (
        f"A line is the mean over the {parts[0][1].repeat}s of a setting, a band reaches from the lowest to the "
        "highest. A cross marks where a member diverged, a square where one was stopped."
    )
    thinned = [own["stretch"] * own["per"] for part in described for own in part["metrics"] if own["stretch"] > 1]
    if thinned:
        note += (
            f" Thinned out: what has more points than a screen comes in stretches of up to {max(thinned)} steps, each "
            "by its lowest and its highest value; smoothed, by its mean."
        )
    alt = f"Curves of {counted(sum(len(part['settings']) for part in described), 'setting')} against the step."
    return CurveChart(title="Curves", note=note, alt=alt, parts=described)


def describe_part(name: str, runs: Curves, metric: str | None = None) -> dict[str, Any]:
    """Return the curves of a sweep as the page's script reads them.

    Args:
        name: in the chooser.
        runs: the sweep.
        metric: that is shown first; None as in `Sweep.final`.

    Returns:
        The settings with their looks and members, how and where members ended, and the values by metric.
    """
    bands = runs.bands("train_loss")
    looks = choose_looks([band.setting for band in bands])
    unit = find_unit(runs)
    first = name_metric(runs, metric)
    names = [first, *(own for own in (*runs.metrics, "train_loss", *runs.norms) if own != first)]
    return {
        "name": name,
        "x": describe_axis(unit),
        "phases": [phase / unit for phase in runs.phases[1:]],
        "settings": [{**looks[band.setting]._asdict(), "members": list(band.members)} for band in bands],
        "ended": [_how_ended(member) for member in runs.members],
        "at": [end / unit for end in find_ends(runs)],
        "seeds": [describe_seed(runs, member.seed) for member in runs.members],
        "metrics": [own for own in (_describe_metric(runs, metric, unit) for metric in names) if own],
    }


def _how_ended(member: MemberRecord) -> int:
    return _DIVERGED if member.diverged_at is not None else _STOPPED if member.stopped_at is not None else _WENT_ON


def _describe_metric(runs: Curves, metric: str, unit: float) -> dict[str, Any] | None:
    """One curve of all members; None where there is nothing of it."""
    steps, values = runs.curve(metric)
    if not np.isfinite(values).any():
        return None
    ends = find_ends(runs)
    bands = [_until(max(ends[i] for i in band.members), band, metric in runs.metrics) for band in runs.bands(metric)]
    length = find_stretch(len(steps), len(bands))
    drawn = np.stack([(band.mean, band.low, band.high) for band in bands])
    bottom, top = find_view(drawn, find_usual(runs, metric, drawn), find_mode(metric, None))
    told: dict[str, Any] = {
        "name": metric,
        "stretch": length,
        "per": max(1, round(float(np.median(np.diff(steps))))) if len(steps) > 1 else 1,
        "rows": pack(steps[::length] / unit),
        "view": [bottom, top],
        "log": is_wide(bottom, top),
        "smoothed": 0 if metric in runs.metrics else len(steps) / _WINDOW,
        "own": pack(means(values, length).T),  # [member, stretch]
    }
    if length > 1:
        told["line"] = pack(_thin(extremes, [band.mean for band in bands], length))
    if length > 1 and len(bands) < len(runs.members):
        told["low"] = pack(_thin(lowest, [band.low for band in bands], length))
        told["high"] = pack(_thin(highest, [band.high for band in bands], length))
    return told


def _until(end: int, band: Band, is_measured: bool) -> Band:
    """A band without what follows the end of its last seed; a metric is still measured there."""
    is_over = band.steps > end if is_measured else band.steps >= end
    mean, low, high = (np.where(is_over, np.nan, own) for own in (band.mean, band.low, band.high))
    return replace(band, mean=mean, low=low, high=high)


def _thin(
    thinned: Callable[[FloatArray, int], FloatArray],
    curves: Sequence[FloatArray],  # [setting][row]
    length: int,
) -> FloatArray:
    """Thin curves out, `[setting, stretch]`."""
    return np.stack([thinned(curve[:, None], length)[:, 0] for curve in curves])
