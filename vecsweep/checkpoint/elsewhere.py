"""Folders that do not lie on a disk of this machine, but at a URL that fsspec reads, such as "s3://bucket/lr".

Such a place has files, which are there whole or not at all, and no folders that could be renamed. So a folder is
written here, and sent file by file, its manifest last; one that has none is not there yet. Nothing there is locked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

MANIFEST = "manifest.json"


def folder_of(where: "str | PathLike[str]") -> Path:
    """Make a path of what a user named; that of a URL has the methods of a `Path`.

    Raises:
        ImportError: it is a URL, and what reads URLs is not installed.
        ValueError: nobody reads URLs of its kind.
    """
    text = str(where)
    if "://" not in text:
        return Path(where)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    try:
        from upath import UPath
    except ImportError:
        raise ImportError("A `checkpoint` at a URL needs fsspec. Run: pip install 'vecsweep[cluster]'") from None
    try:
        path = UPath(text)
        path.fs  # noqa: B018 - it is looked for when it is asked for
    except ImportError as error:
        raise ImportError(f"`checkpoint` {text!r} needs what reads such URLs: {error}.") from error
    except ValueError as error:
        raise ValueError(f"`checkpoint` must be a folder, or a URL that fsspec reads; got {text!r}: {error}.") from None
    return cast(Path, path)


def is_elsewhere(path: Path) -> bool:
    """Whether a path is that of a URL."""
    return not isinstance(path, Path)


def refresh(path: Path) -> None:
    """Forget what was read of what there is, which others may have changed since."""
    if is_elsewhere(path):
        _there(path).fs.invalidate_cache()


def write(path: Path, content: bytes) -> None:
    """Write a file."""
    there = _there(path)
    there.fs.makedirs(there.parent.path, exist_ok=True)
    there.fs.pipe_file(there.path, content)


def send(here: Path, path: Path) -> None:
    """Send the files of a folder, in place of one that is there."""
    there, files = _there(path), sorted(here.iterdir(), key=lambda file: file.name == MANIFEST)
    remove(path)
    there.fs.makedirs(there.path, exist_ok=True)
    for file in files:
        there.fs.put_file(str(file), (there / file.name).path)


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Have a file or a folder here for a while; a missing one is missing here, too."""
    refresh(path)
    there = _there(path)
    with TemporaryDirectory(prefix="vecsweep-") as folder:
        here = Path(folder) / path.name
        if there.is_dir():
            here.mkdir()
            for file in there.iterdir():
                there.fs.get_file(file.path, str(here / file.name))
        elif there.exists():
            there.fs.get_file(there.path, str(here))
        yield here


def remove(path: Path) -> None:
    """Remove a folder, its manifest first, so that nobody takes what is left for a whole one."""
    there = _there(path)
    if (there / MANIFEST).exists():
        (there / MANIFEST).unlink()
    if there.exists():
        there.fs.rm(there.path, recursive=True)


def _there(path: Path) -> Any:
    """What it is besides a `Path`: the type checker sees one type of path in all that reads and writes folders."""
    return path
