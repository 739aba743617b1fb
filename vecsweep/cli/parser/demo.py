"""What `vecsweep demo` takes."""

import argparse
from pathlib import Path

from vecsweep.cli.arguments import add_json
from vecsweep.cli.demos import DEMOS

WHAT = "show what vecsweep does, on real data"
EXAMPLE = "vecsweep demo --quick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    listed = "; ".join(f"{name}: {what}" for name, what in DEMOS.items())
    parser.add_argument(
        "name", metavar="NAME", nargs="?", choices=list(DEMOS), default="digits", help=f"{listed} (default: digits)"
    )
    parser.add_argument("--quick", action="store_true", default=False, help="with less data and time")
    parser.add_argument(
        "--compare",
        action="store_true",
        default=False,
        help="of digits: train the same by a plain loop over models, too, and say how long that takes",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="where the files go (default: demo)",
    )
    parser.add_argument("--device", default=None, help="where members train, such as cpu or cuda (default: cpu)")
    add_json(parser)
