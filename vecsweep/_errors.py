"""The errors and warnings that are vecsweep's own; everything else is a ValueError or a TypeError."""

import sys
import warnings
from pathlib import Path
from typing import Any


class FallbackWarning(UserWarning):
    """A task trains another way than asked for, because PyTorch cannot batch some part of it, or cannot be kept so."""


def warn_of_fallback(message: str) -> None:
    """Warn at the line of the caller's that called vecsweep."""
    here, depth = str(Path(__file__).parent), 2
    frame = sys._getframe(1)  # warnings.warn can skip a package's own frames from Python 3.12 on
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, FallbackWarning, stacklevel=depth)


class ResultFileError(ValueError):
    """A file is not a result that this version of vecsweep can read."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run.

    Attributes:
        result: what the run had computed: an ordinary result, shorter than the one asked for. None when
            not even the first steps were done.
        checkpoint: the folder in which the run can go on from here, if it is kept in one.
    """

    def __init__(self, result: Any | None, checkpoint: Path | None = None) -> None:
        where = "" if checkpoint is None else f", and it goes on from {checkpoint} when it is called again"
        super().__init__(f"the run was interrupted; what it had computed is in `.result`{where}")
        self.result = result
        self.checkpoint = checkpoint
