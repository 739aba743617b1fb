"""Curves as a pandas DataFrame, or a Parquet file: the rows of `Curves.records`, made by columns."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vecsweep.results._files import replace_file
from vecsweep.results.curves import Curves
from vecsweep.results.records import curve_names, epochs_of, steps_of

if TYPE_CHECKING:
    from pandas import DataFrame


def make_frame(runs: Curves) -> "DataFrame":
    """Return the curves in long format; see `Sweep.to_pandas`.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("`to_pandas` needs pandas. Run: pip install 'vecsweep[pandas]'") from error
    parts = [_columns_of(runs, metric) for metric in curve_names(runs)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["member"], kind="stable")  # member by member, and of each metric by metric
    frame = pd.DataFrame({name: values[order] for name, values in columns.items()})
    return frame.astype({"epoch": "Int64"})  # which may be unknown


def write_parquet(runs: Curves, path: str | os.PathLike[str]) -> Path:
    """Write the same to a Parquet file; see `Sweep.to_parquet`.

    Raises:
        ImportError: pandas or pyarrow is not installed.
        OSError: the file cannot be written.
    """
    try:
        import pyarrow  # noqa: F401 - which pandas would say in many lines
    except ImportError as error:
        raise ImportError("`to_parquet` needs pandas and pyarrow. Run: pip install 'vecsweep[pandas]'") from error
    frame = make_frame(runs)
    return replace_file(Path(path), lambda part: frame.to_parquet(part, index=False))


def _columns_of(runs: Curves, metric: str) -> dict[str, Any]:
    """The rows of one metric, as columns `[row]`, member by member."""
    steps, values = runs.curve(metric)
    is_measured = metric in runs.metrics
    is_there = ~np.isnan(values) if is_measured else steps[:, None] < steps_of(runs)
    member, row = np.nonzero(is_there.T)
    step = steps[row]
    epoch = epochs_of(runs, step, is_measured=is_measured)
    names = runs.members[0].hyper
    diverged_at = runs.diverged_at[member]
    return {
        "member": member,
        "lr": np.array([own.lr for own in runs.members])[member],
        "schedule": np.array([own.schedule for own in runs.members], dtype=object)[member],
        **{name: np.array([own.hyper[name] for own in runs.members])[member] for name in names},
        "seed": np.array([own.seed for own in runs.members])[member],
        "step": step,
        "epoch": np.full(len(step), np.nan) if epoch is None else epoch,
        "metric": np.full(len(step), metric, dtype=object),
        "value": values[row, member],
        "diverged": step == diverged_at,
    }
