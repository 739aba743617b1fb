"""The parser of the command line: in a module of its own, what each command takes.

Nothing here imports PyTorch or NumPy, so that help, completion and a mistake in what was asked are told at once.
"""

import argparse
from typing import NoReturn

from vecsweep._version import __version__
from vecsweep.cli.parser import bench, check, data, demo, find_lr, plot, range_test, report, resume, steer, sweep
from vecsweep.cli.saying import say_aloud

_COMMANDS = {
    "demo": demo,
    "find-lr": find_lr,
    "range-test": range_test,
    "sweep": sweep,
    "resume": resume,
    "steer": steer,
    "check": check,
    "plot": plot,
    "report": report,
    "bench": bench,
    "data": data,
}


class _Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vecsweep: error: {message}. See {self.prog} --help.\n")


class _PrintCompletion(argparse.Action):
    """Prints a shell's completion, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, values: object, __: str | None = None) -> NoReturn:
        try:
            import shtab
        except ImportError as error:
            raise ImportError("Completion needs shtab. Run: pip install 'vecsweep[completion]'") from error
        say_aloud(shtab.complete(parser, str(values)))
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return a parser that puts the name of the module whose `run` carries the command out into `module`."""
    parser = _Parser(
        prog="vecsweep",
        description="Train N copies of a PyTorch model at N learning rates in one batched pass.",
        epilog="Example:\n  vecsweep demo --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vecsweep {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print what the shell completes commands and options by; for example: "
        'eval "$(vecsweep --print-completion bash)"',
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.WHAT,
            description=command.WHAT[0].upper() + command.WHAT[1:] + ".",
            epilog=f"Example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        command.add_arguments(added)
        added.set_defaults(module=f"vecsweep.cli.{name.replace('-', '_')}")
    return parser
