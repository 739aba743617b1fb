"""Loaders with worker processes: waited for so that Ctrl-C ends the wait, and ended with the run, also if they hang.

When a worker dies, PyTorch's handler of SIGCHLD raises wherever the main thread is, such as where random streams are
put back. Like Ctrl-C, that is held back while members train, until a batch is waited for.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any
from weakref import WeakSet

from vecsweep._interrupts import raised_at_once
from vecsweep._types import Batch

END = object()  # in place of a batch, where there is none any more

_PATIENCE_S = 1.0  # with workers that are told to end; PyTorch's own is 5
_OF_PYTORCH = "torch.utils.data._utils.signal_handling"


class _Opened:
    """The iterators of a run's loaders; those that were broken off are kept, lest they end in PyTorch's own way."""

    def __init__(self) -> None:
        self.iterators = WeakSet[Any]()
        self.broken_off = list[Any]()
        self._raise: Callable[[int, FrameType | None], object] | None = None  # PyTorch's handler
        self._is_waiting = self._is_due = False

    def add(self, iterator: Iterator[Batch]) -> None:
        """Note an iterator with workers, whose handler is there from now on."""
        self.iterators.add(iterator)
        if self._raise is None and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
            if callable(handler) and handler.__module__ == _OF_PYTORCH:
                self._raise = handler
                signal.signal(signal.SIGCHLD, self._note)

    def next_of(self, iterator: Iterator[Batch]) -> Batch:
        """Wait for a batch, and let what goes wrong be raised meanwhile."""
        self._is_waiting = True
        try:
            if self._is_due and self._raise is not None:
                self._is_due = False
                self._raise(signal.SIGCHLD, None)
            with raised_at_once():
                return next(iterator, END)
        except BaseException as error:
            self.broken_off.append(iterator)
            if isinstance(error, EOFError | ConnectionError):
                self._raise_death()
            raise
        finally:
            self._is_waiting = False

    def end(self) -> None:
        """End all workers, those that hang by force, and give the handler back."""
        iterators = list(self.iterators)
        if iterators:
            _end([worker for iterator in iterators for worker in iterator._workers], iterators)
        if self._raise is not None and signal.getsignal(signal.SIGCHLD) == self._note:
            signal.signal(signal.SIGCHLD, self._raise)

    def _raise_death(self) -> None:
        """Raise what became of a worker that ended as it handed a batch over, which itself has no words for it."""
        until_s = time.monotonic() + _PATIENCE_S
        while self._raise is not None and time.monotonic() < until_s:
            self._raise(signal.SIGCHLD, None)
            time.sleep(0.01)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting and self._raise is not None:
            self._raise(number, frame)
        self._is_due = True


_OPENED: ContextVar[_Opened | None] = ContextVar("opened", default=None)


@contextmanager
def loaders_ended() -> Iterator[None]:
    """End the workers of all loaders that are opened meanwhile."""
    own = _Opened()
    token = _OPENED.set(own)
    try:
        yield
    finally:
        _OPENED.reset(token)
        own.end()


def opened(iterator: Iterator[Batch]) -> Iterator[Batch]:
    """Note the iterator of a loader, if it has workers; `loaders_ended` will end them."""
    own = _OPENED.get()
    if own is not None and hasattr(iterator, "_shutdown_workers"):
        own.add(iterator)
    return iterator


def next_batch(iterator: Iterator[Batch]) -> Batch:
    """Wait for a batch; END where there is none any more."""
    own = _OPENED.get()
    if own is not None:
        return own.next_of(iterator)
    with raised_at_once():
        return next(iterator, END)


def _end(workers: list[Any], iterators: list[Any]) -> None:
    def terminate() -> None:
        for worker in workers:
            worker.terminate()

    timer = threading.Timer(_PATIENCE_S, terminate)
    timer.start()
    try:
        for iterator in iterators:
            iterator._shutdown_workers()
    finally:
        timer.cancel()
        timer.join()
