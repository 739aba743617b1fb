"""What `vecsweep steer` takes."""

import argparse
from pathlib import Path

from vecsweep.cli.arguments import TASK_HELP, add_execution, numbers, output_folder

WHAT = "train phase by phase at the terminal: choose learning rates, see what they do, keep one, go on"
EXAMPLE = "vecsweep steer digits --epochs 3 --lrs 0.03,0.1,0.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="offered for the first phase (default: 1)")
    parser.add_argument(
        "--lrs",
        type=numbers,
        default=[0.001, 0.003, 0.01, 0.03, 0.1],
        metavar="LR,LR",
        help="offered for the first phase (default: 0.001,0.003,0.01,0.03,0.1)",
    )
    parser.add_argument("--metric", default=None, help="that marks the best (default: val_loss, if there is one)")
    parser.add_argument(
        "--output-dir",
        type=output_folder,
        default=Path("steer"),
        metavar="DIR",
        help="where the schedule, the curves and the model go (default: steer)",
    )
    add_execution(parser, has_engine=True)
