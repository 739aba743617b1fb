"""The errors and warnings that are vecsweep's own; everything else is a ValueError or a TypeError."""

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any


class FallbackWarning(UserWarning):
    """A task trains another way than asked for, because PyTorch cannot batch some part of it, or cannot be kept so.

    Example:
        >>> import warnings
        >>> import vecsweep as vs
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", vs.FallbackWarning)  # rather stop than train one after another
    """


class LostMembersWarning(UserWarning):
    """Members of a sweep on a cluster were lost with the workers that trained them."""


def warn_of_fallback(message: str) -> None:
    """Warn at the line of the caller's that called vecsweep, of another way to train."""
    _warn(message, FallbackWarning)


def warn_of_trouble(message: str) -> None:
    """Likewise, of something that went wrong without stopping the run."""
    _warn(message, RuntimeWarning)


def warn_of_stumble(message: str) -> None:
    """Likewise, of what is hardly meant."""
    _warn(message, UserWarning)


def warn_of_loss(message: str) -> None:
    """Likewise, of members that are lost."""
    _warn(message, LostMembersWarning)


def warn_again(warning: Warning) -> None:
    """Likewise, of what another process has warned of."""
    _warn(str(warning), type(warning))


def _warn(message: str, category: type[Warning]) -> None:
    within = (str(Path(__file__).parent), contextlib.__file__)  # the latter of functions that are decorated
    depth, frame = 2, sys._getframe(1)  # warnings.warn can skip a package's own frames from Python 3.12 on
    while frame.f_back is not None and frame.f_code.co_filename.startswith(within):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)


class ResultFileError(ValueError):
    """A file is not a result that this version of vecsweep can read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import vecsweep as vs
        >>> path = Path(tempfile.mkdtemp()) / "runs.npz"
        >>> _ = path.write_bytes(b"something else")
        >>> try:
        ...     vs.load(path)
        ... except vs.ResultFileError as error:
        ...     print("no result" if "not" in str(error) else error)
        no result
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run.

    Attributes:
        result: what the run had computed: an ordinary result, shorter than the one asked for, with the weights as they
            stood; a second Ctrl-C, which does not wait for all members to be at one step, leaves none. None when
            not even the first steps were done.
        checkpoint: the folder in which the run can go on from here, if it is kept in one.

    Example:
        >>> import vecsweep as vs
        >>> try:
        ...     raise vs.Interrupted(result=None)  # as Ctrl-C does
        ... except vs.Interrupted as stop:
        ...     runs = stop.result
    """

    def __init__(self, result: Any | None, checkpoint: Path | None = None) -> None:
        where = "" if checkpoint is None else f", and it goes on from {checkpoint} when it is called again"
        what = "there is no result" if result is None else "what it had computed is in `.result`"
        super().__init__(f"the run was interrupted; {what}{where}")
        self.result = result
        self.checkpoint = checkpoint


def with_result(error: Exception, result: Any) -> Exception:
    """Attach what a run had computed to the error that stopped it, as its attribute `result`, and say so in a note."""
    try:
        error.result = result  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return error  # of a class that takes no attributes
    num_steps = len(result.train_loss)
    error.add_note(f"vecsweep: what the run had computed, {num_steps} steps, is in this error's attribute `result`.")
    return error
