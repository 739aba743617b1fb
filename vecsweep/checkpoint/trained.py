"""A finished sweep with all that it takes to go on from it, as one folder: its curves, and what it trained."""

import errno
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from vecsweep._arguments import check_schedules
from vecsweep._engine.keeping.record import Start, here
from vecsweep._engine.keeping.snapshot import check_identity, identify_task
from vecsweep._engine.run import learners_of
from vecsweep._errors import ResultFileError
from vecsweep._types import Schedules
from vecsweep.checkpoint.arguments import pack, unpack
from vecsweep.checkpoint.disk import flush, read_folder, remove, write_folder
from vecsweep.checkpoint.journal import RESULT
from vecsweep.checkpoint.snapshots import pack_end, pack_state, unpack_end, unpack_state, written_by
from vecsweep.evaluation import Stopping
from vecsweep.execution import Execution
from vecsweep.folds import check_folds, of_folds
from vecsweep.plan import Course, Member
from vecsweep.pruning import Prune, halve
from vecsweep.request import Request
from vecsweep.results import Sweep, load
from vecsweep.results._files import told_as_os_errors
from vecsweep.task import Task

_TRAINED = "trained"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a sweep keeps besides its curves; see `training.Training`."""

    request: Request
    members: tuple[Member, ...]
    courses: tuple[Course, ...]
    start: Start


def write_trained(path: Path, runs: Sweep, own: Trained) -> None:
    """Write a sweep whole, as a folder, in place of one that is there.

    Raises:
        OSError: it cannot be written, or something else is there.
        ValueError: passes keep an object in Python that only pickle could keep.
    """
    if path.exists() and not is_whole(path):
        raise FileExistsError(errno.EEXIST, "There is something else; name another folder", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder; make it first", str(path.parent))
    new = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        with told_as_os_errors(path):
            new.mkdir()
            runs.save(new / RESULT)
            write_folder(new / _TRAINED, _pack(own), written_by())
            flush(new / RESULT)
            if path.exists():
                remove(path)
            new.rename(path)
            flush(path.parent)
    except TypeError as error:
        raise ValueError(
            f"A folder keeps numbers, text, tensors and containers of them; {error}. Save a file, which has the "
            "curves alone, by a name such as 'runs.npz'."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def is_whole(path: Path) -> bool:
    """Whether a folder holds a sweep that was written whole."""
    return (path / RESULT).is_file() and (path / _TRAINED).is_dir()


def read_trained(path: Path, task: Task, schedules: Schedules | None, prune: Prune | None) -> tuple[Sweep, Trained]:
    """Read a sweep that was written whole.

    Args:
        path: the folder.
        task: what was trained; another is refused.
        schedules: as in the call that trained it, if functions were among them.
        prune: likewise.

    Raises:
        ResultFileError: it is damaged.
        TypeError: the task's batches are not functions of the fold, as they were.
        ValueError: the task is another, or a function is not given.
    """
    value, runs = read_folder(path / _TRAINED), load(path / RESULT)
    if runs.folds is not None:
        task = of_folds(task, check_folds(task, runs.folds))
    try:
        request = replace(_unpack_request(value["request"], task, prune), about=runs.about)
        members = tuple(Member(**member) for member in value["members"])
        given = None if schedules is None else check_schedules(schedules)
        packed = {name: own if given is None else given.get(name, own) for name, own in value["schedules"].items()}
        named = check_schedules(unpack({"schedules": packed}, {})["schedules"])
        courses = tuple(Course(named[name], name, begin, num_steps) for name, begin, num_steps in value["courses"])
        learners = learners_of(task, list(dict.fromkeys(member.seed for member in members)), request.execution)
        check_identity(identify_task(learners), value["identity"])
        start = Start(
            [unpack_state(state) for state in value["states"]],  # on the host, from where a run takes what it needs
            learners,
            {int(seed): unpack_end(end) for seed, end in value["ends"].items()},
            value["metrics"],
        )
    except (KeyError, TypeError) as error:
        raise ResultFileError(f"{path} is damaged: {error}.") from error
    return runs, Trained(request, members, courses, start)


def _pack(own: Trained) -> dict[str, Any]:
    request = own.request
    followed = {course.name: pack(course.schedule) for course in own.courses}
    return {
        "request": {
            "val_every": request.val_every,
            "has_train_metrics": request.has_train_metrics,
            "stopping": None if request.stopping is None else asdict(request.stopping),
            "prune": _pack_prune(request.prune),
            "rungs": list(request.rungs),
            "rung_metric": request.rung_metric,
            "recorded": list(request.recorded),
            "execution": {
                own.name: pack(getattr(request.execution, own.name))
                for own in fields(Execution)
                if own.name != "cluster"
            },
        },
        "members": [asdict(member) for member in own.members],
        "schedules": followed,
        "courses": [[course.name, course.begin, course.num_steps] for course in own.courses],
        "identity": identify_task(own.start.learners),
        "states": [pack_state(state) for state in here(own.start.states)],
        "ends": {str(seed): pack_end(end) for seed, end in own.start.ends.items()},
        "metrics": own.start.metrics,
    }


def _pack_prune(prune: Prune | None) -> Any:
    if isinstance(prune, partial) and prune.func is halve:
        return {"halving": dict(prune.keywords)}
    return pack(prune)


def _unpack_request(value: Mapping[str, Any], task: Task, prune: Prune | None) -> Request:
    packed = value["prune"]
    if isinstance(packed, dict) and "halving" in packed:
        prune = partial(halve, **packed["halving"])
    else:
        prune = unpack({"prune": packed}, {"prune": prune})["prune"]
    return Request(
        task,
        Execution(**value["execution"]),
        value["val_every"],
        value["has_train_metrics"],
        None if value["stopping"] is None else Stopping(**value["stopping"]),
        prune=prune,
        rungs=tuple(value["rungs"]),
        rung_metric=value["rung_metric"],
        recorded=tuple(value["recorded"]),
    )
