"""Progress bars, of processes that are forked too."""

import os
import threading
from typing import Any

from tqdm.auto import tqdm

_HOME = os.getpid()


class Bar(tqdm):
    """As tqdm's, but it leaves no thread behind, and in a forked process it has a lock of its own.

    tqdm's lock is common to a process and those that are forked from it: one that is killed while it holds it, or that
    was forked while another thread held it, would leave all others waiting for ever.
    """

    monitor_interval = 0  # of a thread that looks after bars which reckon when to look at the clock; these always do
    _locked_in = _HOME  # the process whose lock this is

    def __new__(cls, *arguments: Any, **options: Any) -> "Bar":
        """Make a bar."""
        if cls._locked_in != os.getpid():
            cls._locked_in = os.getpid()
            cls.set_lock(threading.RLock())
        return super().__new__(cls, *arguments, **options)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what tqdm takes, but for `miniters`."""
        super().__init__(*arguments, miniters=1, **options)
