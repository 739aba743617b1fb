"""What `vecsweep find-lr` takes."""

import argparse
from typing import get_args

from vecsweep._names import SCHEDULES, Mode
from vecsweep.cli.arguments import (
    TASK_HELP,
    add_checkpoint,
    add_execution,
    add_json,
    add_seeds,
    output_file,
    picture_file,
    report_file,
    schedules,
    varied,
    weights_file,
)

WHAT = "find the learning rate for a run, and train the model with it"
EXAMPLE = "vecsweep find-lr digits --epochs 30 --schedule cosine --png answer.png --model best.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    asked = parser.add_argument_group("the run that the learning rate is for")
    length = asked.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the training data")
    length.add_argument("--num-steps", type=int, metavar="N", help="updates, in place of --epochs")
    asked.add_argument(
        "--schedule",
        dest="schedules",
        type=schedules,
        metavar="NAME,NAME",
        help=f"what it follows: {', '.join(SCHEDULES)}; with arguments as in 'one-cycle(div=10)'; several "
        "to compare them (default: constant)",
    )
    asked.add_argument(
        "--vary",
        type=varied,
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="values of another hyperparameter of the optimizer to compare, such as weight_decay=0,1e-2; may be given "
        "again",
    )
    search = parser.add_argument_group("how it is found")
    search.add_argument(
        "--budget",
        type=float,
        metavar="RUNS",
        help="the work that may be spent, in runs of one member (default: 4; more for a run of less than 60 steps)",
    )
    add_seeds(search, default="1; 2 from a budget of 7 on, 3 from 11")
    search.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="of what training gains that does not matter (default: 0.02)"
    )
    search.add_argument(
        "--monitor", metavar="METRIC", help="the metric to go by (default: val_loss, or train_loss without one)"
    )
    search.add_argument("--mode", choices=get_args(Mode), help="less or more of it is better (default: by its name)")
    add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output",
        type=output_file,
        default=None,
        metavar="FILE.npz",
        help="save the answer here, with the curves of all that was trained (default: nowhere)",
    )
    written.add_argument(
        "--png", type=picture_file, default=None, metavar="FILE.png", help="draw the race here (default: nowhere)"
    )
    written.add_argument(
        "--model",
        type=weights_file,
        default=None,
        metavar="FILE.safetensors",
        help="write the trained model's weights here (default: nowhere)",
    )
    add_checkpoint(written)
    written.add_argument(
        "--report",
        type=report_file,
        default=None,
        metavar="FILE.html",
        help="write a report to be looked at in a browser here (default: nowhere)",
    )
    add_json(written)
