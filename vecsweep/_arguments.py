"""What the command line takes: the parser of each command, and the types of its arguments.

An option that is not given is left out of the parsed arguments, so that the defaults of the library hold.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vecsweep import __version__

RANGE_OPTIONS = ("start_lr", "end_lr", "num_lrs", "num_steps", "seeds", "method", "spacing")
CHECK_OPTIONS = ("lrs", "num_steps", "seeds")
EXECUTION_OPTIONS = (
    "device",
    "precision",
    "engine",
    "compile",
    "chunk_size",
    "accumulation_steps",
    "max_grad_norm",
    "divergence_factor",
    "seed",
)

_TASK_HELP = (
    "a built-in task (digits, digits-cnn), path/to/file.py:function or package.module:function returning a "
    "vecsweep.Task"
)

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vecsweep: error: {message}. See {self.prog} --help.\n")


def make_parser(
    *, demo: Command, range_test: Command, check: Command, plot: Command, bench: Command
) -> argparse.ArgumentParser:
    """Return a parser that puts the function of the command into `run`.

    Args:
        demo: what runs the command of that name; likewise the others.
        range_test: likewise.
        check: likewise.
        plot: likewise.
        bench: likewise.
    """
    parser = _Parser(
        prog="vecsweep",
        description="Train N copies of a PyTorch model at N learning rates in one batched pass.",
        epilog="Example:\n  vecsweep demo --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vecsweep {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, what: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    _fill_demo(add("demo", demo, "find a learning rate for the digits task, and time it", "vecsweep demo --quick"))
    example = "vecsweep range-test digits --start-lr 1e-5 --num-lrs 32 --png digits.png"
    _fill_range_test(add("range-test", range_test, "find out which learning rates train a task", example))
    example = "vecsweep check path/to/file.py:make_task --lrs 1e-3,1e-2"
    _fill_check(add("check", check, "compare the batched pass with stock PyTorch on a task", example))
    _fill_plot(add("plot", plot, "draw a saved range test", "vecsweep plot digits.npz --output digits.png"))
    what = "time the ways of stepping on this machine, and say which to use"
    _fill_bench(add("bench", bench, what, "vecsweep bench digits --num-members 8,64"))
    return parser


def _fill_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", default=False, help="fewer learning rates and steps: a few seconds"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="where digits.png and digits.npz go (default: demo)",
    )
    _add_json(parser)


def _fill_range_test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=_TASK_HELP)
    tested = parser.add_argument_group("what is tested")
    tested.add_argument("--start-lr", type=float, metavar="LR", help="the smallest learning rate (default: 1e-7)")
    tested.add_argument("--end-lr", type=float, metavar="LR", help="the largest learning rate (default: 10)")
    tested.add_argument("--num-lrs", type=int, metavar="N", help="learning rates of a grid (default: 64)")
    tested.add_argument("--num-steps", type=int, metavar="N", help="updates of each member (default: 100)")
    _add_seeds(tested)
    tested.add_argument(
        "--method",
        choices=("grid", "ramp"),
        help="a member for each lr, or Smith's rising lr (default: grid)",
    )
    tested.add_argument(
        "--spacing",
        choices=("exponential", "linear"),
        help="equal ratios or differences (default: exponential)",
    )
    tested.add_argument("--rule", default=None, help="that suggests (default: lowest for a grid, valley for a ramp)")
    tested.add_argument(
        "--smoothing",
        type=float,
        default=None,
        metavar="WEIGHT",
        help="of the past in [0, 1), before the rule (default: 0 for a grid, 0.8 for a ramp)",
    )
    _add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output",
        type=_output_file,
        default=None,
        metavar="FILE.npz",
        help="save the result here (default: nowhere)",
    )
    written.add_argument(
        "--png",
        type=_picture_file,
        default=None,
        metavar="FILE.png",
        help="draw the curve here (default: nowhere)",
    )
    _add_json(written)


def _fill_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=_TASK_HELP)
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--lrs",
        type=_numbers,
        metavar="LR,LR",
        help="of the members (default: 0.1, 0.5 and 1 times the optimizer's)",
    )
    compared.add_argument("--num-steps", type=int, metavar="N", help="updates of each member (default: 5)")
    _add_seeds(compared)
    _add_execution(parser, has_engine=False)
    _add_json(parser)


def _fill_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="a result that was saved")
    parser.add_argument(
        "--output",
        type=_picture_file,
        default=None,
        metavar="FILE.png",
        help="where to draw (default: beside the result)",
    )
    parser.add_argument("--rule", default=None, help="mark this rule's suggestion too, and print it")


def _fill_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks", metavar="TASK", nargs="*", default=["digits", "digits-cnn"], help=f"{_TASK_HELP} (default: both)"
    )
    parser.add_argument(
        "--num-members",
        type=_counts,
        default=[8, 64],
        metavar="N,N",
        help="how many copies are trained (default: 8,64)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="time the compiled step too, which takes seconds to compile (default: yes)",
    )
    parser.add_argument("--device", help="where members train, such as cpu or cuda (default: where the model is)")
    parser.add_argument("--precision", choices=("bf16", "fp16"), help="of autocast (default: the model's own)")
    _add_json(parser)


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="print one JSON document, nothing else")


def _add_seeds(parser: Any) -> None:
    parser.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N",
        help="how many seeds, or the seeds themselves as in 3,4,5 (default: 1)",
    )


def _add_execution(parser: argparse.ArgumentParser, *, has_engine: bool) -> None:
    group = parser.add_argument_group("how it is carried out")
    group.add_argument("--device", help="where members train, such as cpu or cuda (default: where the model is)")
    group.add_argument("--precision", choices=("bf16", "fp16"), help="of autocast (default: the model's own)")
    if has_engine:
        group.add_argument(
            "--engine",
            choices=("auto", "vectorized", "sequential"),
            help="how members are stepped (default: auto)",
        )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="compile the step, or not (default: where that pays)",
    )
    group.add_argument("--chunk-size", type=_chunk_size, metavar="N", help="members stepped together (default: auto)")
    group.add_argument("--accumulation-steps", type=int, metavar="N", help="batches in each update (default: 1)")
    group.add_argument("--max-grad-norm", type=float, metavar="NORM", help="clip each member's gradient (default: no)")
    group.add_argument(
        "--divergence-factor", type=_divergence_factor, metavar="FACTOR", help="above 1, or none (default: 5)"
    )
    group.add_argument("--seed", type=int, metavar="SEED", help="the first of several seeds (default: 0)")


def _numbers(text: str) -> list[float]:
    return [
        _number(item, f"learning rates such as 1e-3,1e-2; got {item!r} at position {i}") for i, item in _items(text)
    ]


def _counts(text: str) -> list[int]:
    for i, item in _items(text):
        if not item.isdecimal() or int(item) == 0:
            raise argparse.ArgumentTypeError(f"must be counts such as 8,64; got {item!r} at position {i}")
    return [int(item) for _, item in _items(text)]


def _seeds(text: str) -> int | list[int]:
    for i, item in _items(text):
        if not item.isdecimal():
            raise argparse.ArgumentTypeError(f"must be whole numbers such as 3 or 3,4,5; got {item!r} at position {i}")
    return [int(item) for _, item in _items(text)] if "," in text else int(text)


def _items(text: str) -> list[tuple[int, str]]:
    return [(i, item.strip()) for i, item in enumerate(text.split(","), start=1)]


def _chunk_size(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, or auto; got {text!r}")


def _divergence_factor(text: str) -> float | None:
    return None if text.lower() == "none" else _number(text, f"a number, or none; got {text!r}")


def _number(text: str, rule: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {rule}") from None


def _output_file(text: str) -> Path:
    """Check where a file can be written, before the work whose result it is to hold."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write to; make it first")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} is read-only; choose another")
    return path


def _picture_file(text: str) -> Path:
    path = _output_file(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png, .pdf or .svg")
    return path
