"""What commands print, and the files they write: the one place of the package that prints."""

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsweep import FallbackWarning, Interrupted, Sweep
from vecsweep.cli.reports import to_json
from vecsweep.cli.waiting import tell
from vecsweep.results._files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Say = Callable[[str], None]

_TRIED_BYTES = 2**16  # that a folder has to have room for


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
        raise ValueError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error


def make_folder(path: Path) -> Path:
    """Make the folder that results go to, and see that there is room in it, before the work."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(_TRIED_BYTES))
    return path


def save_picture(axes: "Axes", path: Path) -> Path:
    """Write the figure that axes are in; a file that is there is replaced at once."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes have just been made in one
    kind = path.suffix.removeprefix(".") or None
    with writing(path):
        return replace_file(path, lambda part: figure.savefig(part, dpi=150, format=kind))


def save_result(result: Sweep, path: Path) -> Path:
    """Save what took its time to compute; where that cannot be written there, somewhere else, and say where.

    Raises:
        ValueError: it had to be somewhere else, or it could be nowhere.
    """
    try:
        return result.save(path)
    except OSError as error:
        told = f"{path} cannot be written: {error.strerror or error}."
    name = f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.npz"
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            raise ValueError(f"{told} The result is in {result.save(folder / name)} instead.")
    raise ValueError(f"{told} Nor is there room for the result elsewhere.")


@contextmanager
def saved_if_stopped(path: Path) -> Iterator[None]:
    """Save what a run had computed when Ctrl-C or an error stopped it, and say where."""
    try:
        yield
    except (Interrupted, Exception) as stop:
        result, is_interrupted = getattr(stop, "result", None), isinstance(stop, Interrupted)
        how = "interrupted" if is_interrupted else f"stopped by {type(stop).__name__}"
        if isinstance(result, Sweep):
            try:
                saved = save_result(result, path)
            except ValueError as error:
                tell(f"{how} after {len(result.train_loss)} steps. {error}")
            else:
                tell(f"{how} after {len(result.train_loss)} steps; what they found is in {saved}.")
        elif is_interrupted:
            tell("interrupted before the first steps were done; there is nothing to save.")
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


class _First(logging.Handler):
    """Tells the first record of a run that takes much, and no other: further runs of a command take as much or less."""

    _has_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it, unless one was told, or there is plenty."""
        if not self._has_told and getattr(record, "is_much", True):
            self._has_told = True
            tell(f"{record.getMessage()} ...")


@contextmanager
def memory_in_a_line() -> Iterator[None]:
    """Tell what the members of a command's run take, and what there is, where that is not plenty."""
    logger, handler = logging.getLogger("vecsweep"), _First(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
