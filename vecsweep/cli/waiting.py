"""What is told on stderr while people wait. Nothing here imports PyTorch, for which they wait first.

Not here: the bars that training shows on a terminal, and the lines in their place (`progress.py`).
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def tell(message: str) -> None:
    """Print one line on stderr, at once."""
    print("vecsweep:", " ".join(message.split()), file=sys.stderr, flush=True)


def has_bars() -> bool:
    """Whether training shows progress bars."""
    return sys.stderr.isatty()


@contextmanager
def told_if_slow(what: str, after_s: float = 2.0) -> Iterator[None]:
    """Say what is being done, once it has taken so long.

    Args:
        what: such as "loading PyTorch".
        after_s: seconds.
    """
    timer = threading.Timer(after_s, tell, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
