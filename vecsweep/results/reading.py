"""Reading: results of whichever kind a file holds."""

import os

from vecsweep.results._files import check_kind, read_result
from vecsweep.results.answer import Answer
from vecsweep.results.range_test import RangeTest
from vecsweep.results.sweep import Sweep

_SWEEPS: dict[str, type[Sweep]] = {kind.__name__: kind for kind in (Sweep, RangeTest)}


def load(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep of whichever kind the file holds; nothing in the file is run.

    Args:
        path: where; ".npz" is added if it has no suffix and there is no such file.

    Returns:
        A `Sweep` or a `RangeTest`, without weights.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: the file is not a result of this version, or holds an `Answer`.
    """
    header, arrays = read_result(path)
    check_kind(path, header, *_SWEEPS)
    return _SWEEPS[header["kind"]]._of(path, header, arrays)


def load_any(path: str | os.PathLike[str]) -> Sweep | Answer:
    """Read a result of whichever kind, an answer too; otherwise as `load`."""
    header, arrays = read_result(path)
    return (_SWEEPS | {Answer.__name__: Answer})[header["kind"]]._of(path, header, arrays)
