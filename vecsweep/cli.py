"""The command line: parse, call, print.

Exit status: 0; 1 when the answer is no (a check found a difference, or no learning rate trains); 2 for a
mistake in what was asked, told in one line; 130 after Ctrl-C; 141 when nobody reads what is printed. An error
that the task's own code raises keeps its traceback: that code is what has to be mended.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vecsweep as vs
from vecsweep import FallbackWarning, Interrupted, RangeTest, load
from vecsweep._allocator import keep_memory
from vecsweep._arguments import CHECK_OPTIONS, EXECUTION_OPTIONS, RANGE_OPTIONS, make_parser
from vecsweep._report import (
    describe_check,
    describe_range_test,
    format_curve,
    format_speeds,
    format_suggestions,
    to_json,
)
from vecsweep.speed import measure_speeds
from vecsweep.suggest import RULES, suggest
from vecsweep.tasks import digits, digits_data, load_task


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: the arguments are wrong (status 2), or ask for help (status 0).
    """
    arguments = make_parser(demo=_demo, range_test=_range_test, check=_check, plot=_plot, bench=_bench).parse_args(argv)
    keep_memory()
    try:
        with _fallbacks_in_a_line():
            status: int = arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, ImportError, BrokenPipeError) as error:
        if not _is_ours(error):
            raise
        if isinstance(error, BrokenPipeError):
            # As after `| head`. Python flushes once more as it exits, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        _tell(f"error: {error}")
        return 2
    return status


def _range_test(arguments: argparse.Namespace) -> int:

    _check_reading(arguments.rule, arguments.smoothing)
    task = load_task(arguments.task)
    with _saved_if_interrupted(arguments.output or Path("range-test-interrupted.npz")):
        found = vs.range_test(task, **_given(arguments, *RANGE_OPTIONS, *EXECUTION_OPTIONS))
    files = _write(found, arguments.output, arguments.png, arguments.rule)
    say = _sayer(arguments)
    document = _tell_curve(found, say, arguments.rule, arguments.smoothing)
    _tell_files(files, say)
    _print_json({"task": arguments.task, **document, **files}, arguments)
    return 1 if document["suggestion"] is None else 0


def _demo(arguments: argparse.Namespace) -> int:

    num_lrs, num_steps, epochs = (16, 40, 10) if arguments.quick else (64, 100, 20)
    plan: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 10.0, "num_lrs": num_lrs, "num_steps": num_steps}
    task, folder, say = digits(), _make_folder(arguments.output_dir), _sayer(arguments)
    say(f"Handwritten digits: {num_lrs} MLPs, each at its own lr, {num_steps} steps, in one batched pass.\n")
    with _saved_if_interrupted(folder / "digits.npz"):
        found = vs.range_test(task, **plan)
    files = _write(found, folder / "digits.npz", folder / "digits.png")
    document = _tell_curve(found, say)
    _tell_files(files, say)
    say("\nThe same work again, batched, and one member after another on stock PyTorch:")
    again, stock = (vs.range_test(task, **plan, engine=engine) for engine in ("auto", "sequential"))
    document["comparison"] = _compare(found, again, stock, say)
    document["trained"] = _train_one(document["suggestion"]["lr"], epochs, say)
    _print_json({"task": "digits", **document, **files}, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    report = vs.check(load_task(arguments.task), **_given(arguments, *CHECK_OPTIONS, *EXECUTION_OPTIONS))
    _sayer(arguments)(str(report))
    _print_json({"task": arguments.task, **describe_check(report)}, arguments)
    return 0 if report.is_equal else 1


def _plot(arguments: argparse.Namespace) -> int:

    _check_reading(arguments.rule)
    try:
        found = load(arguments.file)
    except OSError as error:
        raise ValueError(
            f"{arguments.file} cannot be read: {error.strerror}. Pass the file of a saved result."
        ) from error
    if not isinstance(found, RangeTest):
        raise ValueError(  # noqa: TRY004 - the file is of the wrong kind, not an argument
            f"{arguments.file} holds a {type(found).__name__}; only a RangeTest can be drawn. Pass the file of one."
        )
    files = _write(found, None, arguments.output or arguments.file.with_suffix(".png"), arguments.rule)
    if arguments.rule is not None:
        print(f"Suggestion: {found.suggest(arguments.rule)}")
    _tell_files(files, print)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    say, results = _sayer(arguments), []
    say(f"PyTorch {torch.__version__}, {torch.get_num_threads()} CPU threads.")
    for name in arguments.tasks:
        task = load_task(name)
        for num_members in arguments.num_members:
            say(f"\n{name}, {num_members} members:")
            options = _given(arguments, "device", "precision", "compile")
            speeds, best = measure_speeds(task, num_members, **options)
            say(format_speeds(speeds, best))
            results.append(
                {"task": name, "num_members": num_members, "ways": list(map(asdict, speeds)), "use": asdict(best)}
            )
    document = {"torch": torch.__version__, "num_threads": torch.get_num_threads(), "results": results}
    _print_json(document, arguments)
    return 0


def _check_reading(rule: str | None, smoothing: float | None = None) -> None:
    """Raise ValueError for a wrong rule or smoothing, before the work rather than after it."""
    suggest([1.0], [1.0], rule or "lowest", smoothing=smoothing or 0.0)


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; for all others the library's defaults hold."""
    return {name: value for name, value in vars(arguments).items() if name in names}


def _tell_curve(
    found: RangeTest, say: Callable[[str], None], rule: str | None = None, smoothing: float | None = None
) -> dict[str, Any]:
    """Say what a range test found, and return it for JSON."""
    say(format_curve(found) + "\n")
    taken, suggestions = None, {}
    try:
        taken = found.suggest(rule, smoothing=smoothing)
    except ValueError as error:  # every learning rate diverged
        say(f"No suggestion: {error}\n")
    else:
        suggestions = {name: found.suggest(name, smoothing=smoothing) for name in RULES}
        say(format_suggestions(suggestions, taken) + "\n")
    say(f"{found.duration_s:.2f} s for {len(found.train_loss)} steps ({found.engine}).")
    return describe_range_test(found, suggestions, taken)


def _compare(found: RangeTest, again: RangeTest, stock: RangeTest, say: Callable[[str], None]) -> dict[str, Any]:
    """Say how long stock PyTorch took for the same range test, and whether it found the same."""
    measured = {
        "first_call_s": found.duration_s,
        "batched_s": again.duration_s,
        "sequential_s": stock.duration_s,
        "ratio": stock.duration_s / again.duration_s,
        "num_threads": torch.get_num_threads(),
        "suggested_lr": stock.suggest().lr,
        "median_deviation": float(np.nanmedian(np.abs(found.scores - stock.scores) / stock.scores)),
    }
    say(
        "{batched_s:.2f} s batched, now that all is set up ({first_call_s:.2f} s the first time); {sequential_s:.2f} s "
        "on stock PyTorch, {ratio:.1f} times as long.\nPyTorch's CPU threads: {num_threads}. Stock PyTorch suggests "
        "{suggested_lr:.3g}; its losses differ by {median_deviation:.0e} (relative; median of lrs).\n".format(
            **measured
        )
    )
    return measured


def _train_one(lr: float, epochs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train one digits model at a learning rate, and say how well it reads digits that it has not seen."""
    runs = vs.sweep(digits(), lrs=[lr], epochs=epochs)
    data = digits_data()
    with torch.no_grad():
        is_right = runs.model(0)(data.test_inputs).argmax(dim=1) == data.test_targets
    accuracy = is_right.double().mean().item()
    say(
        f"One model, trained at lr {lr:.3g} for {epochs} epochs ({runs.duration_s:.2f} s), reads {accuracy:.1%} "
        f"of the {len(data.test_inputs)} held-out digits right."
    )
    return {"lr": lr, "epochs": epochs, "test_accuracy": accuracy}


def _write(
    found: RangeTest, output: Path | None, picture: Path | None, rule: str | None = None
) -> dict[str, str | None]:
    """Save and draw a range test where asked; return the paths, for JSON."""
    saved = None
    if output is not None:
        with _writing(output):
            saved = found.save(output)
    if picture is not None:
        from vecsweep.plot import plot_range_test

        axes = plot_range_test(found, rules=[rule]) if rule else found.plot()
        figure = axes.get_figure(root=True)
        assert figure is not None  # the axes have just been made in one
        with _writing(picture):
            figure.savefig(picture, dpi=150)
    paths = {"output": saved, "png": picture}
    return {name: None if path is None else str(path) for name, path in paths.items()}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error


def _make_folder(path: Path) -> Path:
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _saved_if_interrupted(path: Path) -> Iterator[None]:
    """Save what a run had computed when Ctrl-C stopped it, and say where."""
    try:
        yield
    except Interrupted as stop:
        if stop.result is None:
            _tell("interrupted before the first steps were done; there is nothing to save.")
        else:
            with _writing(path):
                saved = stop.result.save(path)
            _tell(f"interrupted after {len(stop.result.train_loss)} steps; what they found is in {saved}.")
        raise


@contextmanager
def _fallbacks_in_a_line() -> Iterator[None]:
    """Show vecsweep's own warnings without the line of code that gave them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", FallbackWarning)
        show = warnings.showwarning

        def show_in_a_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, FallbackWarning):
                _tell(f"warning: {message}")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_in_a_line
        yield


def _is_ours(error: BaseException) -> bool:
    """Whether vecsweep itself raised an error, rather than the task's code or what that calls.

    The kernels never do: an error there is PyTorch's, on its way through an operator that they stand in for.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("vecsweep.") and not module.startswith("vecsweep.kernels")


def _sayer(arguments: argparse.Namespace) -> Callable[[str], None]:
    """What prints for people: nothing does under --json."""
    return (lambda _: None) if arguments.json else lambda text: print(text, flush=True)


def _tell_files(files: dict[str, str | None], say: Callable[[str], None]) -> None:
    for path in filter(None, files.values()):
        say(f"Wrote {path}.")


def _print_json(document: dict[str, Any], arguments: argparse.Namespace) -> None:

    if arguments.json:
        print(to_json(document))


def _tell(message: str) -> None:
    """Print one line on stderr."""
    print("vecsweep:", " ".join(message.split()), file=sys.stderr)
