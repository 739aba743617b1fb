"""What is asked of a run that is kept: to leave (SIGTERM), or to write down where it stands (SIGUSR1).

Not here: Ctrl-C, which is held back for every run, kept or not (`_interrupts.py`).
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_WRITING = getattr(signal, "SIGUSR1", None)  # Windows has none


class Signals:
    """Notes signals, for as long as it is entered, and gives the handlers back as they were.

    It does so in the main thread alone, and takes no signal for which the program has a handler of its own. The second
    signal to leave is obeyed at once.
    """

    def __init__(self) -> None:
        self._is_leaving = False
        self._is_writing_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._take(signal.SIGTERM, self._note_leaving)
            if _WRITING is not None:
                self._take(_WRITING, self._note_writing)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if kind is None:
            self.leave()  # it was asked for when the last was written already

    @property
    def is_leaving(self) -> bool:
        """Whether the run is to be written down and left."""
        return self._is_leaving

    def ask_writing(self) -> None:
        """Ask for the run to be written down."""
        self._is_writing_asked = True

    def take_writing(self) -> bool:
        """Whether the run is to be written down; asked once, it is no longer."""
        asked, self._is_writing_asked = self._is_writing_asked, False
        return asked

    def leave(self) -> None:
        """Leave, if that is asked for, as the signal would have had it.

        Raises:
            SystemExit: with 143.
        """
        if self._is_leaving:
            self._is_leaving = False
            raise SystemExit(128 + signal.SIGTERM)

    def _take(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if signal.getsignal(number) == signal.SIG_DFL:
            self._before[number] = signal.signal(number, handler)

    def _note_leaving(self, number: int, frame: FrameType | None) -> None:
        is_second, self._is_leaving = self._is_leaving, True
        if is_second:
            self.leave()

    def _note_writing(self, number: int, frame: FrameType | None) -> None:
        self.ask_writing()
