"""`vecsweep data`: fetch the data of the built-in tasks, once."""

import argparse

from vecsweep.cli.saying import say_aloud
from vecsweep.tasks.fetching import SETS, fetch, is_fetched


def run(arguments: argparse.Namespace) -> int:
    """Fetch what is not there yet."""
    for name in arguments.names:
        if name not in SETS:
            raise ValueError(f"A set must be one of {', '.join(SETS)}; got {name!r}.")
    for name in arguments.names or SETS:
        if is_fetched(name):
            say_aloud(f"{name}: there already.")
        else:
            say_aloud(f"{name}: {SETS[name].size_mb:g} MB, by {SETS[name].command} ...")
            say_aloud(f"{name}: in {fetch(name)}.")
    return 0
