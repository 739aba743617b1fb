"""`vecsweep report`: write a saved result as an HTML file."""

import argparse
from pathlib import Path

from vecsweep import load
from vecsweep.cli.arguments import report_file
from vecsweep.cli.saying import say_aloud, tell_files, writing

WHAT = "write a saved result as one HTML file, to be looked at in a browser"
EXAMPLE = "vecsweep report sweep/sweep.npz -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="a result that was saved")
    parser.add_argument(
        "-o",
        "--output",
        type=report_file,
        default=None,
        metavar="FILE.html",
        help="where to write (default: beside the result)",
    )
    parser.add_argument("--metric", default=None, help="to rank by (default: val_loss, or train_loss without one)")
    parser.add_argument(
        "--mode", choices=("min", "max"), default=None, help="less or more is better (default: by its name)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a report."""
    try:
        found = load(arguments.file)
    except OSError as error:
        raise ValueError(
            f"{arguments.file} cannot be read: {error.strerror}. Pass the file of a saved result."
        ) from error
    path = arguments.output or arguments.file.with_suffix(".html")
    with writing(path):
        found.to_html(path, metric=arguments.metric, mode=arguments.mode)
    tell_files({"report": str(path)}, say_aloud)
    return 0
