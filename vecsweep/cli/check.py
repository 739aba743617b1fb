"""`vecsweep check`: compare the batched pass with a plain loop on stock PyTorch on a task."""

import argparse

import vecsweep as vs
from vecsweep.cli.arguments import CHECK_OPTIONS, EXECUTION_OPTIONS, given
from vecsweep.cli.reports import describe_check
from vecsweep.cli.saying import print_json, sayer
from vecsweep.cli.waiting import has_bars, tell
from vecsweep.tasks import load_task


def run(arguments: argparse.Namespace) -> int:
    """Check a task, and say whether the two agree."""
    if not has_bars():
        tell("training members in one pass, then by a plain loop ...")
    report = vs.check(load_task(arguments.task), **given(arguments, *CHECK_OPTIONS, *EXECUTION_OPTIONS))
    sayer(arguments)(str(report))
    print_json({"task": arguments.task, **describe_check(report)}, arguments)
    return 0 if report.is_equal else 1
