"""Progress bars, of processes that are forked too, and of those that have no terminal any more."""

import os
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without ipywidgets the bar is one of characters, which is enough
    from tqdm.auto import tqdm

_HOME = os.getpid()


class Bar(tqdm):
    """As tqdm's, but it leaves no thread behind, and in a forked process it has a lock of its own.

    tqdm's lock is common to a process and those that are forked from it: one that is killed while it holds it, or that
    was forked while another thread held it, would leave all others waiting for ever. And what cannot be shown, because
    its terminal or disk is gone, ends no training.
    """

    monitor_interval = 0  # of a thread that looks after bars which reckon when to look at the clock; these always do
    _locked_in = _HOME  # the process whose lock this is

    def __new__(cls, *arguments: Any, **options: Any) -> "Bar":
        """Make a bar."""
        if cls._locked_in != os.getpid():
            cls._locked_in = os.getpid()
            cls.set_lock(threading.RLock())
        return super().__new__(cls, *arguments, **options)

    def __init__(self, *arguments: Any, disable: bool | None = False, **options: Any) -> None:
        """Take what tqdm takes, but for `miniters`."""
        is_there = sys.stderr is not None  # as it is not under pythonw, or after `2>&-`
        try:
            super().__init__(*arguments, miniters=1, disable=disable if is_there else True, **options)
        except OSError:
            super().__init__(*arguments, miniters=1, disable=True, **options)

    def display(self, *arguments: Any, **options: Any) -> Any:
        """Show it, for as long as that can be."""
        try:
            return super().display(*arguments, **options)
        except (OSError, ValueError):  # a file that is closed raises the latter
            self.disable = True

    def close(self) -> None:
        """Take it away; likewise."""
        with suppress(OSError, ValueError):
            super().close()
