"""What `vecsweep check` takes."""

import argparse

from vecsweep.cli.arguments import TASK_HELP, add_execution, add_json, add_seeds, numbers

WHAT = "compare the batched pass with a plain loop on a task"
EXAMPLE = "vecsweep check path/to/file.py:make_task --lrs 1e-3,1e-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--lrs",
        type=numbers,
        metavar="LR,LR",
        help="of the members (default: 0.1, 0.5 and 1 times the optimizer's)",
    )
    compared.add_argument("--num-steps", type=int, metavar="N", help="updates of each member (default: 40)")
    add_seeds(compared)
    add_execution(parser, has_engine=False)
    add_json(parser)
