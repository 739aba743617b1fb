"""`vecsweep find-lr`: find the learning rate for a run, and train the model with it."""

import argparse
from pathlib import Path

import vecsweep as vs
from vecsweep.cli.arguments import CHECKPOINT_OPTIONS, EXECUTION_OPTIONS, given, merged
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import describe_answer
from vecsweep.cli.saving import save_picture, save_result, saved_if_stopped, writing
from vecsweep.cli.saying import print_json, sayer, tell_files
from vecsweep.tasks import load_task

_OPTIONS = ("schedules", "seeds", "num_steps", "epochs", "budget", "tolerance", "monitor", "mode")


def run(arguments: argparse.Namespace) -> int:
    """Find a task's learning rate, and say what speaks for it."""
    task = load_task(arguments.task)
    options = given(arguments, *_OPTIONS, *EXECUTION_OPTIONS, *CHECKPOINT_OPTIONS)
    with saved_if_stopped(Path("find-lr-interrupted.npz")):
        answer = vs.find_lr(task, vary=merged(arguments.vary), callbacks=progress_lines(), **options)
    say, files = sayer(arguments), dict[str, str | None]()
    try:
        try:
            if arguments.model is not None:  # before anything is made of it
                with writing(arguments.model):
                    files["model"] = str(answer.save_model(arguments.model))
        finally:
            say(str(answer))
        if arguments.output is not None:
            files["output"] = str(save_result(answer, arguments.output))
        if arguments.png is not None:
            files["png"] = str(save_picture(answer.plot(), arguments.png))
        if arguments.report is not None:
            with writing(arguments.report):
                files["report"] = str(answer.to_html(arguments.report))
        if files:
            say("")
        tell_files(files, say)
    finally:  # what was found is told, whatever becomes of the files
        print_json({"task": arguments.task, **describe_answer(answer), **files}, arguments)
    return 0
