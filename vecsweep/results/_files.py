"""How results lie on disk: one .npz of arrays and a JSON header, written at once and read without pickle."""

import csv
import errno
import io
import json
import math
import os
import re
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vecsweep._errors import ResultFileError

_FORMAT_VERSION = 2
_SMALL_BYTES = 2**28  # what any file may hold once it is inflated
_MAX_RATIO = 100  # to which a larger one may be; losses are hardly compressed at all
_MAX_ARRAYS = 1000
_ABANDONED_S = 3600.0
_KINDS = {"Sweep": "a Sweep", "RangeTest": "a RangeTest", "Answer": "an Answer"}  # of results, in words

Arrays = dict[str, NDArray[Any]]


def write_result(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Arrays) -> Path:
    """Write a header and arrays; return where, with ".npz" added if the path has no suffix.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".npz")
    text = json.dumps({"format": "vecsweep", "version": _FORMAT_VERSION, **header})

    def write(part: Path) -> None:
        with part.open("xb") as file:
            np.savez_compressed(file, header=np.array(text), allow_pickle=False, **arrays)

    return replace_file(path, write)


def read_result(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Arrays]:
    """Read a file's header and arrays.

    Args:
        path: where; ".npz" is added if it has no suffix and there is no such file.

    Raises:
        OSError: the file is not there, or cannot be read.
        ResultFileError: the file is damaged, foreign, pickled, or of another version.
    """
    path = Path(path)
    if not path.suffix and not path.exists():
        path = path.with_suffix(".npz")
    foreign = ResultFileError(f"{path} is not a result of vecsweep, or it is damaged. Pass a file that `save` wrote.")
    if path.exists() and not path.is_file():
        raise ResultFileError(f"{path} is no ordinary file. Pass a file that `save` wrote.")
    with path.open("rb") as file:
        try:
            arrays = read_arrays(file)
            header = json.loads(str(arrays.pop("header")))
        except Exception as error:  # zlib, zipfile and NumPy raise many kinds, and document few
            raise foreign from error
    if not isinstance(header, dict) or header.get("format") != "vecsweep":
        raise foreign
    if header.get("version") != _FORMAT_VERSION:
        raise ResultFileError(
            f"{path} has format version {header.get('version')}; this vecsweep reads {_FORMAT_VERSION}. Use the "
            "vecsweep that wrote it."
        )
    if header.get("kind") not in list(_KINDS):  # a list is no key
        raise foreign
    return header, arrays


def read_arrays(file: BinaryIO) -> Arrays:
    """Read the arrays of a .npz file, of numbers or text; what it claims to hold is believed within bounds only."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        most = max(_SMALL_BYTES, _MAX_RATIO * file.seek(0, os.SEEK_END))
        if sum(part.file_size for part in parts) > most or len(parts) > _MAX_ARRAYS:
            raise ValueError("it claims to hold more than a result of its size can")
        # zipfile inflates no part beyond the size it claims.
        return {part.filename.removesuffix(".npy"): _read_array(archive.read(part)) for part in parts}


def _read_array(content: bytes) -> NDArray[Any]:
    """Read one array, after a look at whether all of it is there."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read_header(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError("an array is not as long as its shape")
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def check_kind(path: str | os.PathLike[str], header: Mapping[str, Any], *kinds: str) -> None:
    """Raise ResultFileError unless a file holds a result of one of these kinds."""
    if (kind := header["kind"]) not in kinds:
        wanted = " or ".join(map(_KINDS.__getitem__, kinds))
        raise ResultFileError(f"{path} holds {_KINDS[kind]}, not {wanted}. Read it with `vecsweep.{kind}.load`.")


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays whose names begin so, without that."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def write_csv(path: str | os.PathLike[str], names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write rows under a line of the columns' names, as they come."""

    def write(part: Path) -> None:
        with part.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows(rows)

    return replace_file(Path(path), write)


def replace_file(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` make a file under another name, and put it in place at once, so that no half of it is ever there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder; make it first", str(path.parent))
    _clear_away(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # tempfile's are closed to other users
    try:
        with told_as_os_errors(path):
            write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a machine that loses power may keep the new name of an empty file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def told_as_os_errors(path: Path) -> Iterator[None]:
    """Raise an OSError that names a file where writing it fails, also what safetensors calls an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _clear_away(path: Path) -> None:
    """Remove what processes that were killed have left of this file; what is still written to is younger."""
    left = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{32}")
    with suppress(OSError):  # another process may do the same
        for other in path.parent.iterdir():
            if left.fullmatch(other.name) and time.time() - other.stat().st_mtime > _ABANDONED_S:
                other.unlink()
