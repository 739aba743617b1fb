"""Who keeps snapshots of one run: when one is due, written by a thread while training goes on."""

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vecsweep._engine.keeping.snapshot import Snapshot
from vecsweep._errors import warn_of_fallback
from vecsweep.checkpoint.disk import unwritable
from vecsweep.checkpoint.signals import Signals
from vecsweep.checkpoint.snapshots import read_newest, write_snapshot

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_INTERVAL = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|steps)\s*")


@dataclass(frozen=True, slots=True)
class Interval:
    """How often a run is kept; where both are None, at its end and when a signal asks for it.

    Attributes:
        seconds: between snapshots.
        steps: likewise.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Interval":
        """Read an interval as in "5min", "1.5 h", "30s" or "1000 steps".

        Example:
            >>> Interval.parse("5min"), Interval.parse("1000 steps")
            (Interval(seconds=300.0, steps=None), Interval(seconds=None, steps=1000))
        """
        if text is None:
            return cls()
        match = _INTERVAL.fullmatch(text) if isinstance(text, str) else None
        number = 0.0 if match is None else float(match[1])
        if match is None or number <= 0 or (match[2] == "steps" and not number.is_integer()):
            raise ValueError(
                "`checkpoint_every` must be a time or a number of steps, such as '5min', '90s', '1h' or '1000 steps', "
                f"or None; got {text!r}."
            )
        return cls(steps=int(number)) if match[2] == "steps" else cls(seconds=number * _SECONDS[match[2]])

    def is_over(self, seconds: float, steps: int) -> bool:
        """Whether so much time and so many steps are more than the interval."""
        return (self.seconds is not None and seconds >= self.seconds) or (
            self.steps is not None and steps >= self.steps
        )


class FolderKeeper:
    """Keeps the snapshots of one run in a folder; see `snapshot.Keeper`.

    The first is taken after the first steps, so that what cannot be kept is told before much is lost by it. Later ones
    that cannot be written are warned of, and tried again.

    Args:
        folder: made when there is something to write.
        interval: between snapshots.
        signals: that ask for others.
    """

    def __init__(self, folder: Path, interval: Interval, signals: Signals) -> None:
        self.folder = folder
        self.interval = interval
        self.signals = signals
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._has_any = False
        self._is_given_up = False  # nothing can be kept, which was told
        self._kept_at, self._kept_step = time.monotonic(), 0

    def latest(self) -> Snapshot | None:
        """The snapshot to go on from."""
        snapshot = read_newest(self.folder)
        if snapshot is not None:
            self._has_any, self._kept_step = True, snapshot.num_done
        return snapshot

    def is_due(self, num_done: int) -> bool:
        """Whether a snapshot is wanted after so many steps; not before the last is written, lest there be two."""
        if self.signals.is_leaving or self.signals.take_writing():
            return True
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        if not self._has_any:
            return self.interval != Interval()
        return self.interval.is_over(time.monotonic() - self._kept_at, num_done - self._kept_step)

    def keep(self, snapshot: Snapshot) -> None:
        """Write a snapshot, in a thread unless the run is left."""
        if self._is_given_up:
            return
        self.wait()
        self._kept_at, self._kept_step = time.monotonic(), snapshot.num_done
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="vecsweep checkpoint")
        self._thread.start()
        if self.signals.is_leaving and snapshot.chunks:
            self.wait()
            self.signals.leave()

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            ValueError: passes keep something that cannot be written.
            OSError: the first snapshot cannot be written.
        """
        error = self._join()
        self._is_given_up = error is not None and not self._has_any
        if error is None or self._has_any:
            self._warn(error)
        elif isinstance(error, TypeError):
            raise ValueError(
                f"A checkpoint keeps numbers, text, tensors and containers of them; {error}. Keep one of those in the "
                "model or the loss instead, or train without `checkpoint`."
            ) from error
        elif isinstance(error, OSError):
            raise unwritable(self.folder, error) from error
        else:
            raise error

    def close(self) -> None:
        """Wait until all is written; the run is over, and what it has come to is not lost to an error here."""
        self._warn(self._join())

    def _join(self) -> Exception | None:
        """Wait for the thread; return what went wrong in it."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        self._has_any |= error is None
        return error

    def _warn(self, error: Exception | None) -> None:
        if error is not None:
            what = getattr(error, "strerror", None) or error
            left = "the one before it is kept" if self._has_any else "there is none"
            warn_of_fallback(f"A checkpoint could not be written to {self.folder} ({what}); {left}.")

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_snapshot(self.folder, snapshot)
        except Exception as error:  # told by `wait`, in the thread that trains
            self._error = error
