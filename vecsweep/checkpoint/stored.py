"""Parts of a folder that are read when they are asked for, such as the states of single members at the end of a run."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vecsweep._engine.members.ensemble import MemberState
from vecsweep._errors import ResultFileError
from vecsweep.checkpoint.disk import FILE_NAME, check_file, read_manifest
from vecsweep.checkpoint.elsewhere import fetched, is_elsewhere
from vecsweep.checkpoint.snapshots import unpack_state
from vecsweep.checkpoint.values import Box, Json
from vecsweep.results._files import read_arrays

_NUM_OPEN = 16  # folders at a time


@dataclass(frozen=True, slots=True)
class Stored:
    """A member's state at the end of a run, where it was kept; see `record.Elsewhere`.

    Attributes:
        snapshot: the folder of the run's last snapshot.
        position: of the member in that run.
    """

    snapshot: Path
    position: int

    def fetch(self) -> MemberState:
        """Read it.

        Raises:
            ResultFileError: it is damaged, or no longer there.
        """
        return unpack_state(opened(self.snapshot).read("ended", str(self.position)))


def opened(path: Path) -> "OpenFolder":
    """Open a folder that stays as it is; it is fetched once, if it lies elsewhere.

    Raises:
        ResultFileError: it is not there, damaged, foreign, or of a later version.
    """
    try:
        return _opened(path, path.stat().st_mtime)
    except OSError as error:
        raise ResultFileError(f"{path} is no longer there, or cannot be read: {error}.") from error


def forget() -> None:
    """Close all folders; what was fetched of them is removed."""
    _opened.cache_clear()


@lru_cache(maxsize=_NUM_OPEN)
def _opened(path: Path, changed_at: float) -> "OpenFolder":
    return OpenFolder(path)


class OpenFolder:
    """A folder that `disk.write_folder` wrote; its files are held against their checksums when they are first read.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self._until_closed = ExitStack()
        self._path = self._until_closed.enter_context(fetched(path)) if is_elsewhere(path) else path
        manifest = read_manifest(self._path)
        self._content: Json = manifest["content"]
        self._unread = {name: own for name, own in manifest["files"].items() if FILE_NAME.fullmatch(name)}
        with _damage_named(self._path):
            self._file_of = {name: file for file in self._unread for name in _names_in(self._path / file)}

    def read(self, *names: str) -> Any:
        """Read the value of an entry, or of one inside of it.

        Raises:
            ResultFileError: it is damaged.
        """
        value, box = self._content, Box()
        with _damage_named(self._path):
            for name in names:
                value = value[name]
            wanted = set(_referred_to(value))
            for file in {self._file_of[name] for name in wanted}:
                if file in self._unread:
                    check_file(self._path, file, self._unread.pop(file))
                if file.endswith(".npz"):
                    with (self._path / file).open("rb") as stream:
                        box.arrays |= read_arrays(stream)
                else:
                    with safe_open(self._path / file, "pt") as tensors:
                        box.tensors |= {name: tensors.get_tensor(name) for name in wanted.intersection(tensors.keys())}
            return box.unpack(value)

    def names(self, name: str) -> list[str]:
        """The names of what is inside of an entry."""
        return list(self._content[name])

    def __del__(self) -> None:
        self._until_closed.close()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Say that a folder is damaged, whatever it is that goes wrong in its files."""
    try:
        yield
    except ResultFileError:
        raise
    except Exception as error:  # safetensors, zipfile and NumPy raise many kinds, and document few
        raise ResultFileError(f"{path} is damaged: {error}.") from error


def _names_in(file: Path) -> list[str]:
    """The names of the tensors or arrays in a file."""
    if file.suffix == ".npz":
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _referred_to(value: Json) -> Iterator[str]:
    """The names of the tensors and arrays that a packed value refers to."""
    if isinstance(value, dict) and value.get("is") in ("tensor", "complex tensor", "array", "scalar"):
        yield value["of"]
    elif isinstance(value, dict | list):
        for own in value.values() if isinstance(value, dict) else value:
            yield from _referred_to(own)
