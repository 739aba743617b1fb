"""What commands print, and the files they write: the one place of the package that prints."""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsweep import FallbackWarning, Interrupted
from vecsweep.cli.reports import to_json
from vecsweep.cli.waiting import tell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Say = Callable[[str], None]


def say_aloud(text: str) -> None:
    """Print something for people."""
    print(text, flush=True)


def sayer(arguments: argparse.Namespace) -> Say:
    """What prints for people: nothing does under --json."""
    return (lambda _: None) if arguments.json else say_aloud


def tell_files(files: dict[str, str | None], say: Say) -> None:
    """Say which files were written."""
    for path in filter(None, files.values()):
        say(f"Wrote {path}.")


def print_json(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print what a command found, under --json."""
    if arguments.json:
        print(to_json(document))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in a line that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error


def make_folder(path: Path) -> Path:
    """Make the folder that results go to."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def save_picture(axes: "Axes", path: Path) -> Path:
    """Write the figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes have just been made in one
    with writing(path):
        figure.savefig(path, dpi=150)
    return path


@contextmanager
def saved_if_interrupted(path: Path) -> Iterator[None]:
    """Save what a run had computed when Ctrl-C stopped it, and say where."""
    try:
        yield
    except Interrupted as stop:
        if stop.result is None:
            tell("interrupted before the first steps were done; there is nothing to save.")
        else:
            with writing(path):
                saved = stop.result.save(path)
            tell(f"interrupted after {len(stop.result.train_loss)} steps; what they found is in {saved}.")
        raise


@contextmanager
def fallbacks_in_a_line() -> Iterator[None]:
    """Show vecsweep's own warnings without the line of code that gave them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", FallbackWarning)
        show = warnings.showwarning

        def show_in_a_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, FallbackWarning):
                tell(f"warning: {message}")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_in_a_line
        yield
