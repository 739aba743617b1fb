"""`vecsweep range-test`: find out which learning rates train a task."""

import argparse
from pathlib import Path
from typing import Any

import vecsweep as vs
from vecsweep import RangeTest
from vecsweep._types import Method
from vecsweep.cli.arguments import CHECKPOINT_OPTIONS, EXECUTION_OPTIONS, RANGE_OPTIONS, given
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import describe_range_test, format_curve, format_run, format_suggestions
from vecsweep.cli.saving import save_picture, save_result, saved_if_stopped
from vecsweep.cli.saying import Say, print_json, sayer, tell_files
from vecsweep.results.range_test import check_rule
from vecsweep.suggest import suggest
from vecsweep.tasks import load_task


def run(arguments: argparse.Namespace) -> int:
    """Test a task, and say what was found."""
    check_reading(arguments.rule, arguments.smoothing, getattr(arguments, "method", "grid"))
    task = load_task(arguments.task)
    options = given(arguments, *RANGE_OPTIONS, *EXECUTION_OPTIONS, *CHECKPOINT_OPTIONS)
    with saved_if_stopped(arguments.output or Path("range-test-interrupted.npz")):
        found = vs.range_test(task, callbacks=progress_lines(), **options)
    files = write(found, arguments.output, arguments.png, arguments.rule)
    say = sayer(arguments)
    document = tell_curve(found, say, arguments.rule, arguments.smoothing, has_all=arguments.all)
    tell_files(files, say)
    print_json({"task": arguments.task, **document, **files}, arguments)
    return 1 if document["suggestion"] is None else 0


def check_reading(rule: str | None, smoothing: float | None = None, method: Method = "ramp") -> None:
    """Raise ValueError for a rule or smoothing that will not do, before the work rather than after it."""
    suggest([1.0], [1.0], rule or "lowest", smoothing=smoothing or 0.0)
    check_rule(rule, method)


def tell_curve(
    found: RangeTest, say: Say, rule: str | None = None, smoothing: float | None = None, *, has_all: bool = False
) -> dict[str, Any]:
    """Say what a range test found, the suggestions of all rules if asked, and return it for JSON."""
    say(format_curve(found) + "\n")
    taken, suggestions = None, {}
    try:
        taken = found.suggest(rule, smoothing=smoothing)
    except ValueError as error:  # every learning rate diverged
        say(f"No suggestion: {error}\n")
    else:
        suggestions = {name: found.suggest(name, smoothing=smoothing) for name in found.rules}
        say(format_suggestions(suggestions, taken, has_all=has_all) + "\n")
    say(format_run(found))
    return describe_range_test(found, suggestions, taken)


def write(
    found: RangeTest, output: Path | None, picture: Path | None, rule: str | None = None
) -> dict[str, str | None]:
    """Save and draw a range test where asked; return the paths, for JSON."""
    saved = None
    if output is not None:
        saved = save_result(found, output)
    if picture is not None:
        from vecsweep.plot import plot_range_test

        save_picture(plot_range_test(found, rules=[rule]) if rule else found.plot(), picture)
    paths = {"output": saved, "png": picture}
    return {name: None if path is None else str(path) for name, path in paths.items()}
