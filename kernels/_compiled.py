"""What torch.compile has compiled: run as it was written where each call or operator is to be seen."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch


class _Stance:
    """How torch.compile behaves, the same for all threads: the first one here sets it, the last sets it back."""

    def __init__(self) -> None:
        self._lock, self._num_here, self._before = Lock(), 0, ExitStack()

    def enter(self) -> None:
        """Have everything run as it was written."""
        with self._lock:
            if self._num_here == 0:
                self._before.enter_context(torch.compiler.set_stance("force_eager"))
            self._num_here += 1

    def leave(self) -> None:
        """Have it run as before, unless another thread is here."""
        with self._lock:
            self._num_here -= 1
            if self._num_here == 0:
                self._before.close()


_STANCE = _Stance()


@contextmanager
def compiled_run_through() -> Iterator[None]:
    """Run what is compiled, as `torch.cond` is when it is called, as it was written.

    Under a mode that sees each call or operator torch.compile runs it so anyway, and never compiles it again in this
    process.
    """
    _STANCE.enter()
    try:
        yield
    finally:
        _STANCE.leave()
