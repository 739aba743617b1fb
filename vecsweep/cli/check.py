"""`vecsweep check`: compare the batched pass with a plain loop on stock PyTorch on a task."""

import argparse

import vecsweep as vs
from vecsweep.cli.arguments import (
    CHECK_OPTIONS,
    EXECUTION_OPTIONS,
    TASK_HELP,
    add_execution,
    add_json,
    add_seeds,
    given,
    numbers,
)
from vecsweep.cli.reports import describe_check
from vecsweep.cli.saying import print_json, sayer
from vecsweep.cli.waiting import has_bars, tell
from vecsweep.tasks import load_task

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


def run(arguments: argparse.Namespace) -> int:
    """Check a task, and say whether the two agree."""
    if not has_bars():
        tell("training members in one pass, then by a plain loop ...")
    report = vs.check(load_task(arguments.task), **given(arguments, *CHECK_OPTIONS, *EXECUTION_OPTIONS))
    sayer(arguments)(str(report))
    print_json({"task": arguments.task, **describe_check(report)}, arguments)
    return 0 if report.is_equal else 1
