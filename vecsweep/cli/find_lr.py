"""`vecsweep find-lr`: find the learning rate for a run, and train the model with it."""

import argparse
from pathlib import Path

import vecsweep as vs
from vecsweep.cli.arguments import (
    CHECKPOINT_OPTIONS,
    EXECUTION_OPTIONS,
    TASK_HELP,
    add_checkpoint,
    add_execution,
    add_json,
    add_seeds,
    given,
    merged,
    picture_file,
    report_file,
    schedules,
    varied,
    weights_file,
)
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import describe_answer
from vecsweep.cli.saying import print_json, save_picture, saved_if_stopped, sayer, tell_files, writing
from vecsweep.tasks import load_task

WHAT = "find the learning rate for a run, and train the model with it"
EXAMPLE = "vecsweep find-lr digits --epochs 30 --schedule cosine --png answer.png --model best.safetensors"

_OPTIONS = ("schedules", "seeds", "num_steps", "epochs", "budget", "tolerance", "monitor", "mode")


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
        help=f"what it follows: {', '.join(vs.schedules.SCHEDULES)}; with arguments as in 'one-cycle(div=10)'; several "
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
        "--budget", type=float, metavar="RUNS", help="the work that may be spent, in runs of one member (default: 4)"
    )
    add_seeds(search)
    search.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="of what training gains that does not matter (default: 0.02)"
    )
    search.add_argument(
        "--monitor", metavar="METRIC", help="the metric to go by (default: val_loss, or train_loss without one)"
    )
    search.add_argument("--mode", choices=("min", "max"), help="less or more of it is better (default: by its name)")
    add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
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


def run(arguments: argparse.Namespace) -> int:
    """Find a task's learning rate, and say what speaks for it."""
    task = load_task(arguments.task)
    options = given(arguments, *_OPTIONS, *EXECUTION_OPTIONS, *CHECKPOINT_OPTIONS)
    with saved_if_stopped(Path("find-lr-interrupted.npz")):
        answer = vs.find_lr(task, vary=merged(arguments.vary), callbacks=progress_lines(), **options)
    say, files = sayer(arguments), dict[str, str | None]()
    if arguments.model is not None:  # before anything is made of it
        with writing(arguments.model):
            files["model"] = str(answer.save_model(arguments.model))
    say(str(answer))
    if arguments.png is not None:
        files["png"] = str(save_picture(answer.plot(), arguments.png))
    if arguments.report is not None:
        with writing(arguments.report):
            files["report"] = str(answer.to_html(arguments.report))
    if files:
        say("")
    tell_files(files, say)
    print_json({"task": arguments.task, **describe_answer(answer), **files}, arguments)
    return 0
