"""`vecsweep report`: write a saved result as an HTML file."""

import argparse

from vecsweep import Answer
from vecsweep.cli.saving import read_saved, writing
from vecsweep.cli.saying import say_aloud, tell_files


def run(arguments: argparse.Namespace) -> int:
    """Write a report."""
    found = read_saved(arguments.file)
    path = arguments.output or arguments.file.with_suffix(".html")
    with writing(path):
        if isinstance(found, Answer):
            if arguments.metric is not None or arguments.mode is not None:
                raise ValueError("`--metric` and `--mode` rank a sweep; an answer has its own. Leave them out.")
            found.to_html(path)
        else:
            found.to_html(path, metric=arguments.metric, mode=arguments.mode)
    tell_files({"report": str(path)}, say_aloud)
    return 0
