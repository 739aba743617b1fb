"""What was chosen, kept for later calls: in this process, and on disk for others.

The same call is given the same way again, because its result is then the same to the last bit. A choice is forgotten
when it is old, and when a run by it takes far longer or shorter than it was chosen for: the machine was busy then. What
lies on disk may be anybody's; whatever is not a choice is as if it were not there.
"""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout

from vecsweep._engine.ways.choices import Choice, Engine, Way
from vecsweep._folders import cache_folder

_MAX_REMEMBERED = 300
_MAX_BYTES = 2**20  # of the file: several times what so many choices take
_MAX_WORDS = 1000  # characters that say why
_MAX_AGE_S = 30 * 24 * 3600.0
_END_OF_TIME_S = 1e12
_LOCK_S = 2.0  # longest wait for another process that writes
_CONTRADICTION = 2.0  # factor between what steps take and what they were to take, from which a choice is in doubt
_LEAST_WINDOWS = 8  # of a run, before it contradicts anything
_WARM_UP_WINDOWS = 2  # in which steps are traced and compiled

Entries = dict[str, dict[str, Any]]

_OF_PROCESS: dict[tuple[Path, str], dict[str, Any]] = {}


def recall(key: str) -> Choice | None:
    """The choice that was made for this key, if there is one: here first, else by another process."""
    own = _OF_PROCESS.get((_path(), key))
    return _read(own if own is not None else _load().get(key))


def remember(key: str, choice: Choice) -> None:
    """Keep a choice; where the disk cannot be written to, in this process alone."""
    entry = {"way": asdict(choice.way), "why": choice.why, "step_s": choice.step_s, "made_at": time.time()}
    _OF_PROCESS[_path(), key] = entry

    def put_last(known: Entries) -> None:
        known.pop(key, None)
        known[key] = entry

    _change(put_last)


def forget(key: str) -> None:
    """Have the next call choose again."""
    _OF_PROCESS.pop((_path(), key), None)
    _change(lambda known: known.pop(key, None))


class Pace:
    """How long the steps of a run take.

    Args:
        is_exact: whether what is noted is the time of the steps, rather than the most that they can have taken.
    """

    def __init__(self, *, is_exact: bool) -> None:
        self._is_exact = is_exact
        self._seconds: list[float] = []

    def note(self, seconds: float, num_steps: int) -> None:
        """Note how long a window of steps took, of all members."""
        self._seconds.append(seconds / num_steps)

    def contradicts(self, step_s: float) -> bool:
        """Whether steps took far longer or shorter than was measured before."""
        steady = self._seconds[_WARM_UP_WINDOWS:]
        if len(steady) < _LEAST_WINDOWS:
            return False
        ratio = statistics.median(steady) / step_s
        return ratio < 1 / _CONTRADICTION or (self._is_exact and ratio > _CONTRADICTION)


def _read(entry: object) -> Choice | None:
    """Make a choice of what was kept; None of anything else, and of what is too old."""
    try:
        way, why, step_s, made_at = (entry[name] for name in ("way", "why", "step_s", "made_at"))  # type: ignore[index]
        choice = Choice(Way(**way), why, step_s)
    except (KeyError, TypeError):
        return None
    is_sound = (
        choice.way.engine in get_args(Engine)
        and type(choice.way.chunk_size) is int
        and choice.way.chunk_size > 0
        and type(choice.way.is_compiled) is bool
        and isinstance(why, str)
        and len(why) <= _MAX_WORDS
        and _is_seconds(step_s)
        and _is_seconds(made_at)
        and abs(time.time() - made_at) < _MAX_AGE_S
    )
    return choice if is_sound else None


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < _END_OF_TIME_S  # NaN is not, nor what overflows


def _change(change: Callable[[Entries], object]) -> None:
    """Change what is on disk, one process at a time; a folder that cannot be written to is no reason to fail."""
    path = _path()
    with suppress(OSError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_S):
            known = {key: entry for key, entry in _load().items() if _read(entry) is not None}
            change(known)
            part = path.with_suffix(".part")  # nobody else writes it, and what a killed process left is written over
            part.write_text(json.dumps(dict(list(known.items())[-_MAX_REMEMBERED:]), indent=1))
            part.replace(path)


def _load() -> Entries:
    path = _path()
    with suppress(OSError, ValueError, RecursionError):  # the last of JSON that is nested too deep
        if path.is_file() and (found := path.stat()).st_size <= _MAX_BYTES:
            return _parse(path, found.st_mtime_ns, found.st_size)
    return {}


@lru_cache(maxsize=1)
def _parse(path: Path, mtime_ns: int, size: int) -> Entries:
    """What a file holds, parsed again when it has changed; it takes a millisecond, some per cent of a short run."""
    known = json.loads(path.read_text())
    return known if isinstance(known, dict) else {}


def _path() -> Path:
    return cache_folder() / "choices.json"
