"""What pictures and reports read off curves: what varies, in words; a metric's name and side; what of it is in view.

Numbers and words only: nothing here draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vecsweep._types import FloatArray, Mode
from vecsweep._words import counted
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import Setting, group_by_setting, mode_of

_HEADROOM = 1.5  # height of the view, in units of what the usual value is above the best
_LEAST_HEADROOM = 0.1  # the same in units of the usual value, so that a flat curve stays in view
_LONGEST_NAME = 30  # of a schedule, in a title
# Of the highest to the lowest value in view, from which on an axis is logarithmic; a race is looked at for its lowest.
LOG_RATIO = 30.0
RACE_LOG_RATIO = 3.0


def find_varying(settings: Sequence[Setting]) -> dict[str, list[Any]]:
    """Return the values of what varies, by name: numbers in ascending order, schedules as they come."""
    if not settings:
        return {}
    names = ["lr", "schedule", *dict.fromkeys(name for setting in settings for name, _ in setting.hyper)]
    found = {name: list(dict.fromkeys(value_of(setting, name) for setting in settings)) for name in names}
    ordered = {name: values if name == "schedule" else sorted(values) for name, values in found.items()}
    return {name: values for name, values in ordered.items() if len(values) > 1}


def value_of(setting: Setting, name: str) -> Any:
    """Return what a setting has: its lr, its schedule or a hyperparameter."""
    own: dict[str, Any] = {"lr": setting.lr, "schedule": setting.schedule, **dict(setting.hyper)}
    return own.get(name, float("nan"))


def describe_value(name: str, value: Any) -> str:
    """Write a value so that it says what it is of."""
    return str(value) if name == "schedule" else f"{name} {value:.4g}"


def describe_counts(runs: Curves) -> str:
    """Write how many members there are, and of how many of what."""
    settings = list(group_by_setting([member.setting for member in runs.members]))
    varying, first = find_varying(settings), settings[0]
    parts = []
    for name in ("lr", "schedule", *(name for name, _ in first.hyper)):
        if name in varying:
            num = len(varying[name])
            parts.append(counted(num, name) if name in ("lr", "schedule") else f"{num} values of {name}")
        elif name != "schedule" or len(first.schedule) <= _LONGEST_NAME:
            parts.append(describe_value(name, value_of(first, name)))
    parts.append(counted(len({member.seed for member in runs.members}), runs.repeat))
    if not runs.is_complete:
        parts.append("interrupted")
    return f"{counted(len(runs.members), 'member')}: {', '.join(parts)}"


def describe_seed(runs: Curves, seed: int) -> str:
    """Write a member's seed, which may stand for a fold of one."""
    return f"seed {seed}" if runs.folds is None else f"fold {seed % runs.folds} of seed {seed // runs.folds}"


def name_metric(runs: Curves, metric: str | None) -> str:
    """Return the metric that is meant: "val_loss" if none is named and there is one, else "train_loss"."""
    return metric if metric is not None else "val_loss" if "val_loss" in runs.metrics else "train_loss"


def find_mode(metric: str, mode: Mode | None) -> Mode | None:
    """Return which side of a curve the best is on; None if neither its name nor anybody tells."""
    try:
        return mode_of(metric, mode)
    except ValueError:
        if mode is not None:
            raise
        return None


def find_usual(runs: Curves, metric: str, values: FloatArray) -> float:
    """Return a value that is to be in view: the median; of a loss, at least that of the untrained model."""
    usual = float(np.median(values[np.isfinite(values)]))
    untrained = runs.train_loss[:1]
    untrained = untrained[np.isfinite(untrained)]
    if metric.endswith("loss") and untrained.size:
        usual = max(usual, float(untrained.mean()))
    return usual


def find_view(
    values: FloatArray,
    usual: float,
    mode: Mode | None,
) -> tuple[float, float]:
    """Return what is to be seen of values: from the best to half again as far from it as the usual value is.

    Args:
        values: of any shape, at least one of them finite.
        usual: a value that is to be in view, such as the loss of the untrained model.
        mode: on which side the best is; None shows all values.
    """
    finite = values[np.isfinite(values)]
    bottom, top = float(finite.min()), float(finite.max())
    if mode == "min":
        top = min(top, bottom + max(_HEADROOM * (usual - bottom), _LEAST_HEADROOM * abs(usual)))
    elif mode == "max" and not (bottom >= 0 and top <= 1):  # shares do not explode
        bottom = max(bottom, top - max(_HEADROOM * (top - usual), _LEAST_HEADROOM * abs(usual)))
    return bottom, top
