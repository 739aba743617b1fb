"""`python -m vecsweep`, and the command `vecsweep`: a process that Ctrl-C ends at any moment, imports included."""

import os
import signal
import sys
from typing import Any

from vecsweep import _interrupts as interrupts


def command() -> int:
    """Run the command that this process was started for, and return its exit status."""
    _open_what_is_closed()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as in the background of a shell
        from vecsweep.cli import main

        return main()
    interrupts.begin_command()
    sys.unraisablehook = _show
    from vecsweep.cli import main

    try:
        status = main()
    except BaseException:
        if not interrupts.is_leaving():
            raise
        status = interrupts.STATUS
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; as Python ends, it would show a traceback
    return interrupts.STATUS if interrupts.is_leaving() else status


def _open_what_is_closed() -> None:
    """Print to nowhere what goes to a stream that the shell has closed, as by `>&-`; Python has None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for as long as the process lives


def _show(unraisable: Any) -> None:
    """Show an error that Python drops, but for Ctrl-C, which is not lost by that."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(command())
