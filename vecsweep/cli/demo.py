"""`vecsweep demo`: the experiments on real data."""

import argparse
from importlib import import_module

from vecsweep.cli.demos.stage import Stage
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.saving import make_folder
from vecsweep.cli.saying import print_json, sayer


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
    document = import_module(f"vecsweep.cli.demos.{arguments.name}").run(stage)
    print_json({"task": arguments.name, **document}, arguments)
    return 0
