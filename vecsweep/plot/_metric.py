"""What a metric's values are drawn by: its name, which side the best is on, and what is usual of it."""

import numpy as np

from vecsweep._types import FloatArray, Mode
from vecsweep.results.curves import Curves
from vecsweep.results.ranking import mode_of


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
