"""The command line: parse, call, print. One module for each command, and one in `parser` for what it takes.

Exit status: 0; 1 when the answer is no (a check found a difference, or no learning rate trains); 2 for a
mistake in what was asked, told in one line; 130 after Ctrl-C; 141 when nobody reads what is printed; 143 after
SIGTERM, where that finds time to write a checkpoint. An error that the task's own code raises keeps its traceback:
that code is what has to be mended.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from vecsweep import _interrupts as interrupts
from vecsweep.cli.busy import spare_busy_cores
from vecsweep.cli.parser import make_parser
from vecsweep.cli.saying import fallbacks_in_a_line, memory_in_a_line
from vecsweep.cli.waiting import tell, told_if_slow


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: the arguments are wrong (status 2), or ask for help (status 0).
    """
    try:
        with fallbacks_in_a_line(), memory_in_a_line():
            status = _run(sys.argv[1:] if argv is None else argv)
            while isinstance(status, list):  # another command, in place of this one
                status = _run(status)
    except KeyboardInterrupt as stop:
        if (folder := getattr(stop, "checkpoint", None)) is not None:
            tell(f"`vecsweep resume {folder}` goes on from there.")
        return interrupts.STATUS
    except (ValueError, TypeError, ImportError, OSError) as error:
        if interrupts.is_leaving():  # of which some library has made an error of its own
            return interrupts.STATUS
        if not _is_ours(error):
            raise
        if isinstance(error, BrokenPipeError):
            return 141
        tell(f"error: {_in_words(error)}")
        return 2
    return status


def _run(words: Sequence[str]) -> int | list[str]:
    """Run a command, which a checkpoint can then name; what it needs is loaded when its arguments are right."""
    arguments = make_parser().parse_args(words)
    spare_busy_cores()
    with told_if_slow("loading PyTorch"):
        command = import_module(arguments.module)
        from vecsweep._engine.caller.memory import keep_memory
        from vecsweep.checkpoint.journal import COMMAND, Command
    interrupts.end_loading()
    keep_memory()
    token = COMMAND.set(Command(tuple(words), str(Path.cwd())))
    try:
        result: int | list[str] = command.run(arguments)
    finally:
        COMMAND.reset(token)
    return result


def _in_words(error: Exception) -> str:
    """What an error says, without the number that the system has for it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}."


def _is_ours(error: BaseException) -> bool:
    """Whether vecsweep itself raised an error, rather than the task's code or what that calls.

    The kernels never do: an error there is PyTorch's, on its way through an operator that they stand in for.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("vecsweep.") and not module.startswith("vecsweep.kernels")
