"""Folders that are there whole or not at all: written under another name, flushed, given a list of checksums, renamed.

What is read is held against that list first; a file that was cut off, changed or exchanged raises `ResultFileError`.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from vecsweep._errors import ResultFileError
from vecsweep.checkpoint import elsewhere
from vecsweep.checkpoint.elsewhere import MANIFEST, is_elsewhere
from vecsweep.checkpoint.values import Box, Json
from vecsweep.results._files import Arrays, read_arrays, told_as_os_errors

FORMAT_VERSION = 1
_FORMAT = "vecsweep checkpoint"
_FILE_BYTES = 64 * 2**20  # of tensors: as much memory as writing them takes besides
_MAX_MANIFEST_BYTES = 2**28
FILE_NAME = re.compile(r"[a-z]+(-\d+)?\.(npz|safetensors)")
_LEFT_OVER = (".new-*", ".old-*")


def write_folder(path: Path, value: Any, facts: Mapping[str, Json]) -> None:
    """Write a value as a folder, in place of one that is there.

    Args:
        path: of the folder.
        value: a dict of what `Box` can pack.
        facts: JSON for people, such as versions.

    Raises:
        OSError: it cannot be written; what was there is as it was.
        TypeError: the value holds an object that only pickle could keep.
    """
    if is_elsewhere(path):
        with TemporaryDirectory(prefix="vecsweep-") as folder:
            write_folder(Path(folder) / path.name, value, facts)
            elsewhere.send(Path(folder) / path.name, path)
        return
    box = Box()
    content = {name: box.pack(own, name) for name, own in value.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".new-{uuid.uuid4().hex}"
    try:
        with told_as_os_errors(path):
            new.mkdir()
            for name, arrays in _arrays_by_file(box.arrays).items():
                with (new / name).open("xb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
            for k, tensors in enumerate(_divided(box.tensors)):
                save_file(tensors, new / f"states-{k:03}.safetensors")
            files = {file.name: _checksum(file) for file in sorted(new.iterdir())}
            whole = {"format": _FORMAT, "version": FORMAT_VERSION, **facts, "files": files, "content": content}
            (new / MANIFEST).write_text(json.dumps({"checksum": _checksum_of(whole), **whole}))
            for written in new.iterdir():
                flush(written)
            flush(new)
            _put(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def unwritable(folder: Path, error: OSError) -> OSError:
    """Make what is raised where a run cannot be kept, of what the system says."""
    why = error.strerror or error
    return OSError(
        error.errno, f"A checkpoint cannot be written to {folder}: {why}. Make room, or choose another folder."
    )


def read_folder(path: Path) -> dict[str, Any]:
    """Read the value of a folder.

    Raises:
        ResultFileError: it is damaged, foreign, or of a later version.
    """
    if is_elsewhere(path):
        with elsewhere.fetched(path) as here:
            return read_folder(here)
    whole, box = read_manifest(path), Box()
    try:
        for name, checksum in whole["files"].items():
            check_file(path, name, checksum)
            if name.endswith(".npz"):
                with (path / name).open("rb") as file:
                    box.arrays |= read_arrays(file)
            else:
                box.tensors |= load_file(path / name)
        return {name: box.unpack(own) for name, own in whole["content"].items()}
    except ResultFileError:
        raise
    except Exception as error:  # zipfile, NumPy, safetensors and json raise many kinds, and document few
        raise ResultFileError(f"{path} is damaged: {error}.") from error


def check_file(folder: Path, name: str, checksum: str) -> None:
    """Raise ResultFileError unless a file of a folder, and none elsewhere, is as it was written."""
    file = folder / name
    if not FILE_NAME.fullmatch(name) or not file.is_file() or _checksum(file) != checksum:
        raise ResultFileError(f"{folder} is damaged: {name!r:.80} is not as it was written.")


def read_manifest(path: Path) -> dict[str, Json]:
    """Read what a folder's manifest says.

    Raises:
        ResultFileError: it is damaged, foreign, or of a later version.
    """
    manifest = path / MANIFEST
    if not manifest.is_file() or manifest.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ResultFileError(f"{path} is damaged: it has no {MANIFEST}.")
    try:
        whole = json.loads(manifest.read_bytes())
        checksum = whole.pop("checksum")
        is_whole = checksum == _checksum_of(whole) and whole["format"] == _FORMAT
    except Exception as error:  # of whatever JSON is there instead
        raise ResultFileError(f"{path} is damaged: its {MANIFEST} cannot be read.") from error
    if not is_whole:
        raise ResultFileError(f"{path} is damaged: its {MANIFEST} is not as it was written.")
    if whole["version"] != FORMAT_VERSION:
        raise ResultFileError(
            f"{path} has format version {whole['version']}; this vecsweep reads {FORMAT_VERSION}. Use the vecsweep "
            "that wrote it."
        )
    return dict(whole)


def write_json(path: Path, value: Json) -> None:
    """Write JSON as a file, at once."""
    if is_elsewhere(path):  # where files are there whole or not at all
        elsewhere.write(path, json.dumps(value, indent=1).encode())
        return
    new = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        new.write_text(json.dumps(value, indent=1))
        flush(new)
        new.replace(path)
        flush(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a folder, which is never there in part."""
    if is_elsewhere(path):
        elsewhere.remove(path)
        return
    old = path.with_name(f".old-{uuid.uuid4().hex}")
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what processes have left that were killed as they wrote here."""
    if is_elsewhere(folder):
        for path in folder.glob("step-*"):
            if not (path / MANIFEST).exists():
                elsewhere.remove(path)
        return
    for pattern in _LEFT_OVER:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _put(new: Path, path: Path) -> None:
    """Put a folder in place, be there another or not."""
    if path.exists():
        remove(path)
    new.rename(path)
    flush(path.parent)


def _arrays_by_file(arrays: Arrays) -> dict[str, Arrays]:
    """Random streams in one file, all else in another."""
    files: dict[str, Arrays] = {}
    for name, array in arrays.items():
        files.setdefault("streams.npz" if name.startswith("ends/") else "curves.npz", {})[name] = array
    return files


def _divided(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Divide tensors into files that are not large, as each is copied when it is written."""
    files: list[dict[str, Tensor]] = []
    room = 0
    for name, tensor in tensors.items():
        if not files or tensor.nbytes > room:
            files.append({})
            room = _FILE_BYTES
        files[-1][name] = tensor.contiguous()
        room -= tensor.nbytes
    return files


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _checksum_of(whole: Json) -> str:
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=32).hexdigest()


def flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk itself; Windows opens no folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
