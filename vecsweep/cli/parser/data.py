"""What `vecsweep data` takes."""

import argparse

from vecsweep._names import DATA_SETS

WHAT = "fetch the data of built-in tasks into the cache, and check their hashes"
EXAMPLE = "vecsweep data mnist cifar10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "names", metavar="NAME", nargs="*", default=[], help=f"of a set: {', '.join(DATA_SETS)} (default: all of them)"
    )
