"""Progress bars, of processes that are forked too."""

import os
import threading
from typing import Any

from tqdm.auto import tqdm

_HOME = os.getpid()


class Bar(tqdm):
    """As tqdm's; in a forked process, bars have a lock of their own.

    tqdm's is common to a process and those that are forked from it: one that is killed while it holds it, or that was
    forked while another thread held it, would leave all others waiting for ever.
    """

    _locked_in = _HOME  # the process whose lock this is

    def __new__(cls, *arguments: Any, **options: Any) -> "Bar":
        """Make a bar; its arguments are tqdm's."""
        if cls._locked_in != os.getpid():
            cls._locked_in = os.getpid()
            cls.set_lock(threading.RLock())
        return super().__new__(cls, *arguments, **options)
