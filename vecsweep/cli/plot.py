"""`vecsweep plot`: draw a saved result."""

import argparse
from pathlib import Path
from typing import get_args

from vecsweep import RangeTest, load
from vecsweep.cli.arguments import picture_file
from vecsweep.cli.range_test import check_reading, write
from vecsweep.cli.saying import save_picture, say_aloud, tell_files
from vecsweep.results import PlotKind

WHAT = "draw a saved result"
EXAMPLE = "vecsweep plot digits.npz --output digits.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="a result that was saved")
    parser.add_argument(
        "--output",
        type=picture_file,
        default=None,
        metavar="FILE.png",
        help="where to draw (default: beside the result)",
    )
    parser.add_argument("--rule", default=None, help="of a range test: mark this rule's suggestion too, and print it")
    parser.add_argument(
        "--kind",
        choices=get_args(PlotKind),
        default=None,
        help="of a sweep: what to draw (default: curves)",
    )
    parser.add_argument("--metric", default=None, help="of a sweep: which (default: val_loss, if there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Draw a result."""
    check_reading(arguments.rule)
    try:
        found = load(arguments.file)
    except OSError as error:
        raise ValueError(
            f"{arguments.file} cannot be read: {error.strerror}. Pass the file of a saved result."
        ) from error
    picture = arguments.output or arguments.file.with_suffix(".png")
    if isinstance(found, RangeTest) and arguments.kind is None:
        files = write(found, None, picture, arguments.rule)
        if arguments.rule is not None:
            say_aloud(f"Suggestion: {found.suggest(arguments.rule)}")
    elif arguments.rule is not None:
        raise ValueError(f"`--rule` reads a range test; {arguments.file} holds a {type(found).__name__}. Leave it out.")
    else:
        axes = found.plot(kind=arguments.kind or "curves", metric=arguments.metric)
        files = {"png": str(save_picture(axes, picture))}
    tell_files(files, say_aloud)
    return 0
