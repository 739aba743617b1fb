"""What `vecsweep range-test` takes."""

import argparse
from typing import get_args

from vecsweep._names import Method, Spacing
from vecsweep.cli.arguments import (
    TASK_HELP,
    add_checkpoint,
    add_execution,
    add_json,
    add_seeds,
    output_file,
    picture_file,
)

WHAT = "find out which learning rates train a task"
EXAMPLE = "vecsweep range-test digits --start-lr 1e-5 --num-lrs 32 --png digits.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    tested = parser.add_argument_group("what is tested")
    tested.add_argument(
        "--start-lr",
        type=float,
        metavar="LR",
        help="the smallest learning rate (default: 1e-4 for SGD, Adagrad and Adadelta, else 1e-5; of a ramp 1e-7)",
    )
    tested.add_argument(
        "--end-lr", type=float, metavar="LR", help="the largest learning rate (default: 100 for those, else 10)"
    )
    tested.add_argument("--num-lrs", type=int, metavar="N", help="learning rates of a grid (default: 64)")
    tested.add_argument("--num-steps", type=int, metavar="N", help="updates of each member (default: 100)")
    add_seeds(tested)
    tested.add_argument(
        "--method",
        choices=get_args(Method),
        help="a member for each lr, or Smith's rising lr (default: grid)",
    )
    tested.add_argument(
        "--spacing",
        choices=get_args(Spacing),
        help="equal ratios or differences (default: exponential)",
    )
    tested.add_argument("--rule", default=None, help="that suggests (default: basin for a grid, minimum for a ramp)")
    tested.add_argument(
        "--smoothing",
        type=float,
        default=None,
        metavar="WEIGHT",
        help="of the past in [0, 1), before the rule (default: 0 for a grid, 0.8 for a ramp)",
    )
    tested.add_argument("--all", action="store_true", default=False, help="show what the other rules say, too")
    add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output",
        type=output_file,
        default=None,
        metavar="FILE.npz",
        help="save the result here (default: nowhere)",
    )
    written.add_argument(
        "--png",
        type=picture_file,
        default=None,
        metavar="FILE.png",
        help="draw the curve here (default: nowhere)",
    )
    add_checkpoint(written)
    add_json(written)
