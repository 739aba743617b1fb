"""The command line: parse, call, print.

Exit status: 0; 1 when the answer is no (a check found a difference, or no learning rate trains); 2 for a mistake in
what was asked, told in one line; 130 after Ctrl-C. An error that the task's own code raises keeps its traceback:
that code is what has to be mended.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsweep._arguments import CHECK_OPTIONS, EXECUTION_OPTIONS, RANGE_OPTIONS, make_parser

if TYPE_CHECKING:
    from vecsweep import RangeTest, Sweep

# Imports inside functions are of what needs PyTorch, for which `vecsweep --help` does not wait.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: the arguments are wrong (status 2), or ask for help (status 0).
    """
    arguments = make_parser(demo=_demo, range_test=_range_test, check=_check, plot=_plot).parse_args(argv)
    try:
        with _fallbacks_in_a_line():
            status: int = arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, ImportError, BrokenPipeError) as error:
        if not _is_ours(error):
            raise
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough; Python would flush once more and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        _tell(f"error: {error}")
        return 2
    return status


def _range_test(arguments: argparse.Namespace) -> int:
    import vecsweep as vs
    from vecsweep.tasks import load_task

    _check_reading(arguments.rule, arguments.smoothing)
    task = load_task(arguments.task)
    with _saved_if_interrupted(arguments.output or Path("range-test-interrupted.npz")):
        found = vs.range_test(task, **_given(arguments, *RANGE_OPTIONS, *EXECUTION_OPTIONS))
    say = _sayer(arguments)
    document = {"task": arguments.task} | _report_range_test(found, say, arguments.rule, arguments.smoothing)
    document["files"] = _write(found, say, arguments.output, arguments.png, arguments.rule)
    _print_json(arguments, document)
    return 0 if document["suggestion"] else 1


def _demo(arguments: argparse.Namespace) -> int:
    import vecsweep as vs
    from vecsweep.tasks import digits

    num_lrs, num_steps, epochs = (16, 40, 10) if arguments.quick else (64, 100, 20)
    plan: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 10.0, "num_lrs": num_lrs, "num_steps": num_steps}
    folder, say, task = _make_folder(arguments.output_dir), _sayer(arguments), digits()
    say(f"Handwritten digits: {num_lrs} copies of an MLP, each at its own lr, {num_steps} steps, in one batched pass.\n")
    with _saved_if_interrupted(folder / "digits.npz"):
        found = vs.range_test(task, **plan)
    document = {"task": "digits"} | _report_range_test(found, say)
    document["files"] = _write(found, say, folder / "digits.npz", folder / "digits.png")
    say("\nThe same work, one member after another on stock PyTorch ...")
    document["sequential"] = _compare(found, vs.range_test(task, **plan, engine="sequential"), say)
    document["trained"] = _train_one(document["suggestion"]["lr"], epochs, say)
    _print_json(arguments, document)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    import vecsweep as vs
    from vecsweep._report import describe_check
    from vecsweep.tasks import load_task

    report = vs.check(load_task(arguments.task), **_given(arguments, *CHECK_OPTIONS, *EXECUTION_OPTIONS))
    _sayer(arguments)(str(report))
    _print_json(arguments, {"task": arguments.task} | describe_check(report))
    return 0 if report.is_equal else 1


def _plot(arguments: argparse.Namespace) -> int:
    from vecsweep import RangeTest, load

    _check_reading(arguments.rule)
    try:
        found = load(arguments.file)
    except OSError as error:
        raise ValueError(f"{arguments.file} cannot be read: {error.strerror}. Pass a file that was saved.") from error
    if not isinstance(found, RangeTest):
        raise ValueError(  # noqa: TRY004 - it is the file that is wrong
            f"{arguments.file} holds a {type(found).__name__}; only range tests can be drawn. Pass the file of one."
        )
    if arguments.rule:
        print(f"Suggestion: {found.suggest(arguments.rule)}")
    _write(found, print, None, arguments.output or arguments.file.with_suffix(".png"), arguments.rule)
    return 0


def _report_range_test(
    found: "RangeTest", say: Any, rule: str | None = None, smoothing: float | None = None
) -> dict[str, Any]:
    """Say what a range test found, and return it for JSON."""
    from vecsweep._report import describe_range_test, format_curve, format_suggestions, suggestions_of

    suggestions, selected, none = suggestions_of(found, rule, smoothing)
    say(format_curve(found))
    say("\n" + (format_suggestions(suggestions, selected) if selected else f"No suggestion: {none}"))
    say(f"\n{len(found.members)} members x {len(found.train_loss)} steps: {found.duration_s:.2f} s ({found.engine}).")
    return describe_range_test(found, suggestions, selected)
