"""`vecsweep plot`: draw a saved result."""

import argparse

from vecsweep import Answer, RangeTest
from vecsweep.cli.range_test import check_reading, write
from vecsweep.cli.saving import read_saved, save_picture
from vecsweep.cli.saying import say_aloud, tell_files


def run(arguments: argparse.Namespace) -> int:
    """Draw a result."""
    check_reading(arguments.rule)
    found = read_saved(arguments.file)
    picture = arguments.output or arguments.file.with_suffix(".png")
    if isinstance(found, Answer):
        if given := [name for name in ("rule", "kind", "metric") if getattr(arguments, name) is not None]:
            raise ValueError(f"`--{given[0]}` is for sweeps; {arguments.file} holds an answer. Leave it out.")
        files: dict[str, str | None] = {"png": str(save_picture(found.plot(), picture))}
    elif isinstance(found, RangeTest) and arguments.kind is None:
        files = write(found, None, picture, arguments.rule)
        if arguments.rule is not None:
            say_aloud(f"Suggestion: {found.suggest(arguments.rule)}")
    elif arguments.rule is not None:
        raise ValueError(f"`--rule` reads a range test; {arguments.file} holds a {type(found).__name__}. Leave it out.")
    else:
        axes = found.plot(kind=arguments.kind or "curves", metric=arguments.metric)
        files = {"png": str(save_picture(axes, picture))}
    tell_files(files, say_aloud)
    return 0
