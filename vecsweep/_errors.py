"""The errors and warnings that are vecsweep's own; everything else is a ValueError or a TypeError."""

from typing import Any


class FallbackWarning(UserWarning):
    """A task trains another way than asked for, because PyTorch cannot batch some part of it."""


class ResultFileError(ValueError):
    """A file is not a result that this version of vecsweep can read."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run.

    Attributes:
        result: what the run had computed: an ordinary result, shorter than the one asked for. None when
            not even the first steps were done.
    """

    def __init__(self, result: Any | None) -> None:
        super().__init__("the run was interrupted; what it had computed is in `.result`")
        self.result = result
