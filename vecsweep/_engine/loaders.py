"""Loaders with worker processes: waited for so that Ctrl-C ends the wait, and ended with the run, also if they hang."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from vecsweep._interrupts import raised_at_once
from vecsweep._types import Batch

END = object()  # in place of a batch, where there is none any more

_PATIENCE_S = 1.0  # with workers that are told to end; PyTorch's own is 5
_OPENED: ContextVar["WeakSet[Any] | None"] = ContextVar("opened", default=None)


@contextmanager
def loaders_ended() -> Iterator[None]:
    """End the workers of all loaders that are opened meanwhile."""
    own = WeakSet[Any]()
    token = _OPENED.set(own)
    try:
        yield
    finally:
        _OPENED.reset(token)
        _end(list(own))


def opened(iterator: Iterator[Batch]) -> Iterator[Batch]:
    """Note the iterator of a loader, if it has workers; `loaders_ended` will end them."""
    own = _OPENED.get()
    if own is not None and hasattr(iterator, "_shutdown_workers"):
        own.add(iterator)
    return iterator


def next_batch(iterator: Iterator[Batch]) -> Batch:
    """Wait for a batch; END where there is none any more."""
    with raised_at_once():
        return next(iterator, END)


def _end(iterators: list[Any]) -> None:
    """End workers, those that hang by force."""
    workers = [worker for iterator in iterators for worker in iterator._workers]
    if not workers:
        return

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
