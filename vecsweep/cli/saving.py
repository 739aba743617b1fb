"""The files that commands read and write: results, pictures, and what a run had computed when it was stopped."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vecsweep import Answer, Interrupted, Sweep
from vecsweep._words import counted
from vecsweep.cli.waiting import tell
from vecsweep.results._files import replace_file
from vecsweep.results.reading import load_any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRIED_BYTES = 2**16  # that a folder has to have room for


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


def read_saved(path: Path) -> Sweep | Answer:
    """Read a result that was saved, of whichever kind.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        return load_any(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror or error}. Pass the file of a saved result."
        ) from error


def save_result(result: Sweep | Answer, path: Path) -> Path:
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
                tell(f"{how} after {counted(len(result.train_loss), 'step')}. {error}")
            else:
                tell(f"{how} after {counted(len(result.train_loss), 'step')}; what they found is in {saved}.")
        elif is_interrupted:
            tell("interrupted before the first steps were done; there is nothing to save.")
        raise
