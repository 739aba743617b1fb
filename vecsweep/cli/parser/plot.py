"""What `vecsweep plot` takes."""

import argparse
from pathlib import Path
from typing import get_args

from vecsweep._names import PlotKind
from vecsweep.cli.arguments import picture_file

WHAT = "draw a saved result"
EXAMPLE = "vecsweep plot digits.npz --output digits.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="a result that was saved")
    parser.add_argument(
        "--output",
        "--png",  # as the commands that draw what they have found call it
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
