"""The verb resume, and `load`: what lies in a folder, gone on with or read."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vecsweep import results
from vecsweep._types import Schedules
from vecsweep.answer import find_lr
from vecsweep.checkpoint.arguments import unpack
from vecsweep.checkpoint.elsewhere import fetched, folder_of, is_elsewhere
from vecsweep.checkpoint.journal import RESULT, is_call, latest_child, read_call
from vecsweep.checkpoint.trained import is_whole, read_trained
from vecsweep.execution import Cluster
from vecsweep.pruning import Prune
from vecsweep.range_testing import range_test
from vecsweep.results import Answer, Sweep
from vecsweep.sweeps import sweep
from vecsweep.task import Task
from vecsweep.training import Training

_OPTIONS = ("device", "progress", "cluster")
_VERBS: Mapping[str, Callable[..., Any]] = {"sweep": sweep, "range_test": range_test, "find_lr": find_lr}


def resume(
    folder: str | os.PathLike[str],
    task: Task,
    *,
    schedules: Schedules | None = None,
    prune: Prune | None = None,
    device: Any = None,
    progress: bool | None = None,
    cluster: Cluster | str | None = None,
    checkpoint_every: str | None = "5min",
) -> Sweep | Answer:
    """Go on with what was begun with `checkpoint=folder`, to the last bit as if it had not been broken off.

    It is what making the same call again does, for those who do not have it at hand. If the call's result was extended
    or branched from, it goes on with the last of these.

    Args:
        folder: that `checkpoint` named, a path or a URL.
        task: as it was; what is another is refused.
        schedules: as in the call, if functions were among them, which a folder does not keep.
        prune: likewise.
        device: where members train now, if not where they did.
        progress: whether to show a progress bar; None as in the call.
        cluster: for a call on a cluster, which one now; None for that one.
        checkpoint_every: as in `vecsweep.sweep`.

    Returns:
        What the call would have returned.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ResultFileError: all of its checkpoints are damaged.
        ValueError: the task is another, or a function is not given.
        Interrupted: as in the call.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=5, checkpoint=folder)
        ...     again = vs.resume(folder, task)
        >>> again.train_loss.shape
        (5, 2)
    """
    given = {"schedules": schedules, "prune": prune, "device": device, "progress": progress, "cluster": cluster}
    own: Path | None = folder_of(folder)
    result: Any = None
    while own is not None:
        result = _resume_one(own, task, given, checkpoint_every) if result is None else _go_on(result, own, given)
        own = latest_child(own)
    return result


def load(
    path: str | os.PathLike[str],
    task: Task | None = None,
    *,
    schedules: Schedules | None = None,
    prune: Prune | None = None,
) -> Sweep:
    """Read a result of whichever kind is there; nothing of it is run.

    Args:
        path: a file, or a folder; ".npz" is added if it has no suffix and there is nothing of that name.
        task: what was trained, for a sweep with its weights, out of a folder, that can extend and branch; None for
            the curves alone.
        schedules: as in the call that trained it, if functions were among them, which a folder does not keep.
        prune: likewise.

    Returns:
        A `Sweep` or a `RangeTest`.

    Raises:
        FileNotFoundError: there is nothing.
        ResultFileError: it is not a result of this version, or damaged.
        ValueError: the task is another than was trained, or a function is not given.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> path = vs.sweep(task, lrs=[0.01, 0.1], num_steps=5).save(f"{tempfile.mkdtemp()}/runs.npz")
        >>> vs.load(path)
        Sweep(2 members: 2 lrs, 1 schedule, 1 seed; 5 steps; train_loss)
    """
    path = folder_of(path)
    if is_elsewhere(path) and not is_call(path):
        if not path.exists():
            raise FileNotFoundError(f"There is nothing at {path}.")
        with fetched(path) as here:
            return load(here, task, schedules=schedules, prune=prune)
    if not path.is_dir():
        if task is not None:
            raise ValueError(f"`task` goes with a folder, which holds weights; {path} is none. Leave it out.")
        return results.load(path)
    if not (path / RESULT).exists():
        if not is_call(path):
            return results.load(path)  # which says what is wrong with it
        raise ValueError(f"{path} holds a call that is not over. Go on with `vecsweep.resume({str(path)!r}, task)`.")
    if task is None:
        return load(path / RESULT)
    if is_whole(path):
        runs, own = read_trained(path, task, schedules, prune)
        members = tuple(range(len(own.members)))
        return replace(runs, _trained=Training(own.request, own.members, own.courses, own.start, members))
    loaded: Sweep = _resume_one(path, task, {"schedules": schedules, "prune": prune}, None)
    return loaded


def _resume_one(folder: Path, task: Task, given: Mapping[str, Any], every: str | None) -> Any:
    """Make the call of one folder again; of one that goes on from another's result, that other first."""
    call = read_call(folder)
    if call.verb not in _VERBS:
        return _go_on(_resume_one(folder.parent, task, given, every), folder, given)
    packed = {name: own for name, own in call.arguments.items() if name != "weights"}
    arguments = unpack(packed, {name: own for name, own in given.items() if name in (*packed, *_OPTIONS)})
    return _VERBS[call.verb](task, checkpoint=str(folder), checkpoint_every=every, **arguments)


def _go_on(result: Any, folder: Path, given: Mapping[str, Any]) -> Any:
    """Make a call again that goes on from a result."""
    call = read_call(folder)
    arguments = unpack(call.arguments, {name: own for name, own in given.items() if name in call.arguments})
    members = arguments.pop("members")
    return getattr(result._take(members), call.verb)(**arguments)
