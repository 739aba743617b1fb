"""What `vecsweep resume` takes."""

import argparse

from vecsweep.cli.arguments import kept_folder

WHAT = "go on with a command that was begun with --checkpoint, where it stood"
EXAMPLE = "vecsweep resume runs/digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("folder", metavar="DIR", type=kept_folder, help="the folder or URL that --checkpoint named")
