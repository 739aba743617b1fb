"""The arguments of a call as JSON, and back: numbers and names are kept, functions are named and asked for again."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsweep._arguments import RESTARTABLE
from vecsweep._types import FloatArray
from vecsweep.checkpoint.elsewhere import folder_of
from vecsweep.checkpoint.journal import Journal
from vecsweep.checkpoint.keeper import Interval
from vecsweep.execution import Cluster, Execution
from vecsweep.schedules import parse
from vecsweep.schedules.schedule import Schedule

_NOT_KEPT = ("task", "callbacks", "checkpoint", "checkpoint_every", "restart", "execution")
_FUNCTION = "function"  # the key of what stands for one
_LOOKED_AT = np.linspace(0.0, 1.0, 1001)


def journal_of(
    verb: Callable[..., Any], options: Execution, given: Mapping[str, Any]
) -> AbstractContextManager[Journal | None]:
    """Check the arguments of a call that is to be kept, and return what opens its folder; None if it is not kept.

    Args:
        verb: that is called.
        options: of its execution.
        given: its arguments by name, as `locals()` has them at its first line.

    Raises:
        TypeError: the folder is no path.
        ValueError: they do not fit together, or the batches cannot go back to their place.
    """
    interval = Interval.parse(given["checkpoint_every"])
    if given["checkpoint"] is None:
        if given["restart"]:
            raise ValueError("`restart` belongs to `checkpoint`, the folder that is begun anew; got none.")
        return nullcontext()
    if given["task"].is_one_pass:
        raise ValueError(
            f"`checkpoint` needs batches that can be read again, up to their place; got an iterator. {RESTARTABLE}"
        )
    if not isinstance(given["checkpoint"], str | os.PathLike):
        raise TypeError(
            f"`checkpoint` must be the path of a folder; got {given['checkpoint']!r:.80}. Pass 'runs/lr', say."
        )
    folder = folder_of(given["checkpoint"])
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`checkpoint` must be a folder; {folder} is a file. Name another.")
    arguments = {name: value for name, value in given.items() if name not in _NOT_KEPT} | given["execution"]
    if isinstance(options.cluster, Cluster):
        arguments |= {"cluster": options.cluster, "device": None}  # which may have been a list of devices
    packed = {name: pack(value) for name, value in arguments.items()}
    return Journal(folder, verb.__name__, packed, interval, restarts=given["restart"]).opened()


def pack(value: Any) -> Any:
    """Make JSON of an argument."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike | torch.device):
        return str(value)
    if isinstance(value, Cluster):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): pack(own) for name, own in value.items()}
    if isinstance(value, Sequence):
        return [pack(own) for own in value]
    if isinstance(value, Schedule) and (text := _text_of(value)) is not None:
        return text
    return {_FUNCTION: str(getattr(value, "name", None) or getattr(value, "__qualname__", type(value).__qualname__))}


def unpack(arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Make arguments of JSON.

    Args:
        arguments: as `pack` made them.
        given: what stands in the place of some.

    Raises:
        ValueError: one of them was a function, and is not given.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in arguments.items():
        if name not in given and (function := _function_in(value)):
            raise ValueError(
                f"`{name}` must be given again: {function!r} is Python, which a checkpoint does not keep. Pass "
                f"`{name}=` as in the call that began it, or make that call again with the same `checkpoint`."
            )
    whole = {**arguments, **given}
    if isinstance(cluster := whole.get("cluster"), Mapping):
        whole["cluster"] = Cluster(**{**cluster, "indices": tuple(cluster["indices"])})
    return whole


def _function_in(value: Any) -> str | None:
    """Name a function that is among what was packed."""
    if isinstance(value, dict):
        if value.keys() == {_FUNCTION}:
            return str(value[_FUNCTION])
        value = list(value.values())
    return next(filter(None, map(_function_in, value)), None) if isinstance(value, list) else None


def _text_of(schedule: Schedule) -> str | None:
    """A text that `parse` makes the same schedule of, if it has one."""
    try:
        again = parse(schedule.name)
    except (TypeError, ValueError):
        return None
    return schedule.name if np.array_equal(_values_of(schedule), _values_of(again)) else None


def _values_of(schedule: Schedule) -> FloatArray:
    """What a schedule gives: `[lr or momentum, progress]`."""
    curves = [schedule.function, *([schedule.momentum] if schedule.momentum else [])]
    return np.stack([Schedule(curve)(_LOOKED_AT) for curve in curves])
