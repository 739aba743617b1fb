"""What `vecsweep report` takes."""

import argparse
from pathlib import Path
from typing import get_args

from vecsweep._names import Mode
from vecsweep.cli.arguments import report_file

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
        "--mode", choices=get_args(Mode), default=None, help="less or more is better (default: by its name)"
    )
