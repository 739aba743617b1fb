"""Journal: a folder with what was called, and the runs that the call came to, each where it stands.

A call that is made again takes its runs one after another: those that are over are read, the one under way goes on, and
the others begin. So the verbs have one way, whether a call is new or goes on; and going on from a result is a call with
a folder of its own, inside that of the result.
"""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from vecsweep._engine.keeping.snapshot import difference_of
from vecsweep._errors import ResultFileError, warn_of_fallback
from vecsweep.checkpoint import elsewhere
from vecsweep.checkpoint.disk import clean, unwritable, write_json
from vecsweep.checkpoint.elsewhere import is_elsewhere
from vecsweep.checkpoint.keeper import FolderKeeper, Interval
from vecsweep.checkpoint.signals import Signals
from vecsweep.checkpoint.snapshots import written_by
from vecsweep.results import Sweep

RESULT = "result.npz"
_CALL, _LOCK, _OWNER = "call.json", ".lock", ".owner.json"
_FORMAT, _FORMAT_VERSION = "vecsweep call", 1
_MAX_CALL_BYTES = 2**24
_CHANGEABLE = frozenset({"device", "progress", "tensorboard"})  # arguments that may be others when a call goes on
_DYING_S = 10.0  # that children of a process may live on after it, with its lock


@dataclass(frozen=True, slots=True)
class Command:
    """What was typed.

    Attributes:
        words: behind the program's name.
        folder: in which.
    """

    words: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked for, as JSON.

    Attributes:
        verb: the function's name, or the method's.
        arguments: by name.
        begun_at: seconds since 1970.
        command: in which the call was made; None if it was made in Python.
    """

    verb: str
    arguments: Mapping[str, Any]
    begun_at: float
    command: Command | None


COMMAND: ContextVar[Command | None] = ContextVar("command", default=None)
"""The command that runs; None where none does."""


class Journal:
    """A folder of one call.

    Args:
        folder: made when it is opened.
        verb: that is called.
        arguments: as JSON.
        interval: between snapshots.
        restarts: whether to begin anew if there is something already.
    """

    def __init__(
        self, folder: Path, verb: str, arguments: Mapping[str, Any], interval: Interval, *, restarts: bool = False
    ) -> None:
        self.folder = folder
        self.interval = interval
        self._verb = verb
        self._arguments = json.loads(json.dumps(arguments))
        self._restarts = restarts
        self._signals = Signals()
        self._keepers: list[FolderKeeper] = []

    @contextmanager
    def opened(self) -> Iterator["Journal"]:
        """Hold the folder, for as long as the call runs.

        Raises:
            ValueError: the folder holds another call, or something else, or another process is at it.
            OSError: it cannot be written to.
        """
        with _told_if_unwritable(self.folder):
            if not is_elsewhere(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder), self._signals:
            clean(self.folder)
            if self._restarts:
                self._clear()
            self._note_call()
            try:
                yield self
            finally:
                for keeper in self._keepers:
                    keeper.close()

    def next_keeper(self) -> FolderKeeper:
        """Who keeps the next run of the call."""
        folder = self.folder / f"run-{len(self._keepers):03}"
        if folder.is_dir():
            clean(folder)
        self._keepers.append(FolderKeeper(folder, self.interval, self._signals))
        return self._keepers[-1]

    def note_result(self, runs: Sweep) -> None:
        """Write the curves that the call came to, for those who only look at them."""
        try:
            if not is_elsewhere(self.folder):
                runs.save(self.folder / RESULT)
                return
            with TemporaryDirectory(prefix="vecsweep-") as folder:
                content = runs.save(Path(folder) / RESULT).read_bytes()
            elsewhere.write(self.folder / RESULT, content)
        except OSError as error:
            warn_of_fallback(f"The curves could not be written to {self.folder} ({error.strerror or error}).")

    def child(self, verb: str, arguments: Mapping[str, Any]) -> "Journal":
        """The journal of a call that goes on from this one's result."""
        digest = hashlib.blake2b(json.dumps(arguments, sort_keys=True).encode(), digest_size=4).hexdigest()
        return Journal(self.folder / f"{verb}-{digest}", verb, arguments, self.interval)

    def _note_call(self) -> None:
        """Write down what is called; hold it against what is there."""
        if not (self.folder / _CALL).exists():
            there = self.folder.iterdir() if self.folder.is_dir() else ()
            if others := [path.name for path in there if path.name not in (_LOCK, _OWNER)]:
                raise ValueError(
                    f"`checkpoint` must be a folder of its own; {self.folder} holds {min(others)!r}. Name one that is "
                    "not there yet."
                )
            command = COMMAND.get()
            call = {
                "verb": self._verb,
                "arguments": self._arguments,
                "begun_at": time.time(),
                "command": None if command is None else asdict(command),
            }
            head = {"format": _FORMAT, "version": _FORMAT_VERSION, **written_by()}
            with _told_if_unwritable(self.folder):
                write_json(self.folder / _CALL, head | call)
            return
        before = read_call(self.folder)
        remedy = "Pass `restart=True` to begin anew there, or name another folder."
        if before.verb != self._verb:
            raise ValueError(f"{self.folder} holds a call of `{before.verb}`, not of `{self._verb}`. {remedy}")
        for name in dict.fromkeys((*self._arguments, *before.arguments)):
            now, then = self._arguments.get(name), before.arguments.get(name)
            if name == "cluster":  # that one was used, or none, and not which: shards have folders of their own
                now, then = now and "given", then and "given"
            if name not in _CHANGEABLE and difference_of(now, then) is not None:
                raise ValueError(
                    f"{self.folder} holds another call: `{name}` was {then!r:.80} and is {now!r:.80}. {remedy}"
                )

    def _clear(self) -> None:
        """Remove a call, first so that nobody takes what is left for one."""
        if not (self.folder / _CALL).exists():
            return
        for lock in self.folder.glob(f"*/**/{_LOCK}"):
            with _locked(lock.parent):
                pass  # nobody is at what goes on from here
        (self.folder / _CALL).unlink()
        for path in self.folder.iterdir():
            if is_elsewhere(path):
                elsewhere.remove(path)
            elif path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, _OWNER):
                path.unlink()


def read_call(folder: Path) -> Call:
    """Read which call a folder holds.

    Raises:
        FileNotFoundError: it holds none.
        ResultFileError: it is damaged, or of a later version.
    """
    path = folder / _CALL
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: there is no {_CALL}. Pass the folder of `checkpoint`.")
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_CALL_BYTES))
        version = found["version"] if found["format"] == _FORMAT else None
        words = found["command"]
        command = None if words is None else Command(tuple(map(str, words["words"])), str(words["folder"]))
        call = Call(str(found["verb"]), dict(found["arguments"]), float(found["begun_at"]), command)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultFileError(f"{path} is damaged: {error}. Begin anew with `restart=True`.") from error
    if version != _FORMAT_VERSION:
        raise ResultFileError(
            f"{path} has format version {version}; this vecsweep reads {_FORMAT_VERSION}. Use the vecsweep that "
            "wrote it."
        )
    return call


def is_call(folder: Path) -> bool:
    """Whether a folder holds a call."""
    return (folder / _CALL).is_file()


def latest_child(folder: Path) -> Path | None:
    """The folder of the last call that went on from a folder's result; None if there is none."""
    children = [path.parent for path in folder.glob(f"*/{_CALL}")]
    return max(children, key=lambda child: read_call(child).begun_at, default=None)


@contextmanager
def _told_if_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder; the lock ends with the process that has it. What lies elsewhere has none."""
    if is_elsewhere(folder):
        yield
        return
    lock, owner = FileLock(folder / _LOCK, timeout=0), folder / _OWNER
    try:
        lock.acquire()
    except Timeout:
        who = _owner(owner)
        try:  # its children, such as a loader's workers, see later that it has ended
            lock.acquire(timeout=0 if _is_alive(who) else _DYING_S)
        except Timeout:
            told = f"process {who['pid']} on {who['host']}" if who else "another process"
            raise ValueError(f"{folder} is in use by {told}. Wait until that ends, or name another folder.") from None
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> dict[str, Any]:
    """Who holds the lock, as far as it has said so."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and isinstance(found.get("pid"), int) and "host" in found:
            return found
    return {}


def _is_alive(who: Mapping[str, Any]) -> bool:
    """Whether a process is known to run."""
    if not who or who["host"] != socket.gethostname():
        return bool(who)
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
