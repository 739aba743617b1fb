"""Ctrl-C while members train: noted when it comes, acted on where nothing is half done.

Python raises KeyboardInterrupt between any two of its instructions: inside of what enters or leaves one of PyTorch's
modes, too, which then stays as it is for the rest of the process, or inside a callback of the garbage collector, which
drops it. While Ctrl-C is held back, a handler notes it, and the run looks between its windows of steps, its evaluations
and its trials. A second Ctrl-C is raised wherever it comes.

Only the main thread gets signals, and only Python's own handler is replaced, and that of vecsweep's own commands: who
has installed another, as an asyncio event loop does, is asked by nobody and keeps it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vecsweep._errors import Interrupted


class Stop(KeyboardInterrupt):
    """Ctrl-C, raised where all members stand at one step."""


class _Hold:
    """What has come since Ctrl-C is held back, and the handler that was there."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.is_due = False
        self.is_raised_at_once = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        is_second, self.is_due = self.is_due, True
        if is_second:
            raise KeyboardInterrupt
        if self.is_raised_at_once:
            raise Stop


_hold: _Hold | None = None  # of the main thread

STATUS = 128 + signal.SIGINT  # of a command that Ctrl-C ended
_LEAVE_S = 2.0
_is_leaving = _is_command = False


def begin_command() -> None:
    """Let Ctrl-C end the process of a command while it loads what it needs.

    It has done nothing yet. No handler of Python's runs while PyTorch's libraries are loaded, which takes seconds.
    """
    global _is_command
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _is_command = True


def end_loading() -> None:
    """Handle Ctrl-C from now on, in the process of a command."""
    if _is_command:
        signal.signal(signal.SIGINT, leave)


def leave(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C while a command does anything else than train: raise it, and see to it that it is not lost."""
    global _is_leaving
    if not _is_leaving:
        timer = threading.Timer(_LEAVE_S, os._exit, [STATUS])
        timer.daemon = True
        timer.start()
    _is_leaving = True
    raise KeyboardInterrupt


def is_leaving() -> bool:
    """Whether Ctrl-C came to a command while it did not train."""
    return _is_leaving


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back, until `check` or the end of the context; within another such context nothing changes.

    Raises:
        Interrupted: at the end, if it came and nobody has acted on it; without a result.
    """
    global _hold
    is_free = _hold is None and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not is_free or before not in (signal.default_int_handler, leave):
        yield
        return
    own = _hold = _Hold(before)
    signal.signal(signal.SIGINT, own.note)
    try:
        yield
    except Stop:
        raise Interrupted(None) from None
    finally:
        if signal.getsignal(signal.SIGINT) == own.note:  # and not what the caller's code has installed meanwhile
            signal.signal(signal.SIGINT, before)
        _hold = None
    if own.is_due:
        raise Interrupted(None)


def is_due() -> bool:
    """Whether Ctrl-C came, is held back, and this is the thread that is to act on it."""
    return _hold is not None and _hold.is_due and threading.current_thread() is threading.main_thread()


def check() -> None:
    """Raise Stop if Ctrl-C came and is held back."""
    if is_due():
        raise Stop


@contextmanager
def raised_at_once() -> Iterator[None]:
    """Let Ctrl-C through while something is waited for that may take as long as it likes, such as the caller's code."""
    check()
    own = _hold if threading.current_thread() is threading.main_thread() else None
    if own is None:
        yield
        return
    own.is_raised_at_once = True
    try:
        yield
    finally:
        own.is_raised_at_once = False
