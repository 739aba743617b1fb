"""`vecsweep report`: write a saved result as an HTML file."""

import argparse

from vecsweep import load
from vecsweep.cli.saving import writing
from vecsweep.cli.saying import say_aloud, tell_files


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
