"""`vecsweep demo`: the experiments on real data."""

import argparse
from pathlib import Path

from vecsweep.cli.arguments import add_json
from vecsweep.cli.demos import DEMOS
from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.saying import make_folder, print_json, sayer

WHAT = "show what vecsweep does, on real data"
EXAMPLE = "vecsweep demo --quick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    listed = "; ".join(f"{name}: {(demo.__doc__ or '').splitlines()[0].rstrip('.')}" for name, demo in DEMOS.items())
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


def run(arguments: argparse.Namespace) -> int:
    """Play a demo."""
    stage = Stage(
        sayer(arguments),
        make_folder(arguments.output_dir),
        arguments.quick,
        arguments.device,
        arguments.compare,
        progress_lines(),
    )
    document = DEMOS[arguments.name](stage)
    print_json({"task": arguments.name, **document}, arguments)
    return 0
