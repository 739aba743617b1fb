"""What `vecsweep sweep` takes."""

import argparse
from typing import get_args

from vecsweep._names import SCHEDULES, Mode
from vecsweep.cli.arguments import (
    TASK_HELP,
    add_checkpoint,
    add_execution,
    add_json,
    add_seeds,
    names,
    numbers,
    output_file,
    output_folder,
    schedules,
    varied,
    weights_file,
)

WHAT = "train at several learning rates, schedules and seeds side by side, and rank them"
EXAMPLE = "vecsweep sweep digits --lrs 0.03,0.1,0.3 --schedules constant,one-cycle --seeds 3 --epochs 10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    compared = parser.add_argument_group("what is compared")
    compared.add_argument("--lrs", type=numbers, required=True, metavar="LR,LR", help="the learning rates")
    compared.add_argument(
        "--schedules",
        type=schedules,
        metavar="NAME,NAME",
        help=f"what they follow: {', '.join(SCHEDULES)}; with arguments as in 'one-cycle(div=10)' (default: constant)",
    )
    add_seeds(compared)
    compared.add_argument(
        "--folds",
        type=int,
        metavar="N",
        help="folds of cross-validation, of a task whose batches are functions of the fold (default: none)",
    )
    compared.add_argument(
        "--vary",
        type=varied,
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="another hyperparameter of the optimizer, such as weight_decay=0,1e-2; may be given again, for "
        "more of them or more values",
    )
    length = compared.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the training data")
    length.add_argument("--num-steps", type=int, metavar="N", help="updates of each member, in place of --epochs")
    compared.add_argument(
        "--until", type=int, metavar="N", help="stop there, part-way through the schedules (default: at their end)"
    )
    judged = parser.add_argument_group("how it is judged")
    judged.add_argument("--metric", default=None, help="to rank by (default: val_loss, or train_loss without one)")
    judged.add_argument(
        "--mode",
        choices=get_args(Mode),
        default=None,
        help="less or more of --metric is better, and of --monitor where that is the same (default: by its name)",
    )
    judged.add_argument("--val-every", type=int, metavar="N", help="updates between evaluations (default: an epoch)")
    judged.add_argument(
        "--record",
        type=names,
        metavar="NAME,NAME",
        help="norms to note of each member at each step: grad_norm, update_norm (default: none)",
    )
    judged.add_argument(
        "--train-metrics", action="store_true", help="measure the metrics on the training data, too (default: no)"
    )
    judged.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop a member after N evaluations without progress (default: never)",
    )
    judged.add_argument(
        "--prune",
        choices=("halving",),
        help="stop the worse half after an eighth, a quarter and a half of the run (default: nobody)",
    )
    judged.add_argument("--monitor", metavar="METRIC", help="what --patience and --prune watch (default: val_loss)")
    add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output-dir",
        type=output_folder,
        default=None,
        metavar="DIR",
        help="write sweep.npz and pictures there (default: nowhere)",
    )
    written.add_argument(
        "--csv", type=output_file, default=None, metavar="FILE.csv", help="write all curves here (default: nowhere)"
    )
    written.add_argument(
        "--save-best",
        type=weights_file,
        default=None,
        metavar="FILE.safetensors",
        help="write the best member's weights here (default: nowhere)",
    )
    written.add_argument("--tensorboard", metavar="DIR", help="write each member there as it trains (default: nowhere)")
    add_checkpoint(written)
    add_json(written)
