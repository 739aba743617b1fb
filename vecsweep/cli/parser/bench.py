"""What `vecsweep bench` takes."""

import argparse
from typing import get_args

from vecsweep._names import Precision
from vecsweep.cli.arguments import TASK_HELP, add_json, counts

WHAT = "time the ways of stepping on this machine, and say which to use"
EXAMPLE = "vecsweep bench digits --num-members 8,64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "tasks", metavar="TASK", nargs="*", default=["digits", "digits-cnn"], help=f"{TASK_HELP} (default: both)"
    )
    parser.add_argument(
        "--num-members",
        type=counts,
        default=[8, 64],
        metavar="N,N",
        help="how many copies are trained (default: 8,64)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="time the compiled step too, which takes seconds to compile (default: yes)",
    )
    parser.add_argument("--device", help="where members train, such as cpu or cuda (default: where the model is)")
    parser.add_argument("--precision", choices=get_args(Precision), help="of autocast (default: the model's own)")
    add_json(parser)
