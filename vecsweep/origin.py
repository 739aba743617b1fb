"""Where a result comes from: the call in words, the versions, the device. Kept with it, in files and reports."""

import inspect
import platform
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vecsweep._version import __version__
from vecsweep.execution import Execution
from vecsweep.task import Task

# What says nothing of the numbers: who looks on, and where it is kept, which are paths of the user's machine.
_LEFT_OUT = ("task", "tensorboard", "callbacks", "checkpoint", "checkpoint_every", "restart", "progress")


def tell_origin(verb: Callable[..., Any], given: Mapping[str, Any], task: Task, execution: Execution) -> dict[str, str]:
    """Return where the result of a call comes from, by name.

    Args:
        verb: that was called.
        given: its arguments by name, as `locals()` has them at its first line.
        task: what is trained.
        execution: how.

    Example:
        >>> def sweep(task, *, lrs, seeds=1, **execution): ...
        >>> task = Task(nn.Linear(1, 1), [], nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        >>> given = {"task": task, "lrs": [0.1, 0.3], "seeds": 1, "execution": {"precision": "bf16"}}
        >>> tell_origin(sweep, given, task, Execution(precision="bf16"))["call"]
        "vecsweep.sweep(task, lrs=[0.1, 0.3], precision='bf16')"
    """
    told = []
    for name, parameter in inspect.signature(verb).parameters.items():
        is_options = parameter.kind is inspect.Parameter.VAR_KEYWORD
        values = given[name] if is_options else {name: given[name]}
        default = parameter.default
        told += [
            f"{key}={_words.repr(value)}"
            for key, value in values.items()
            if key not in _LEFT_OUT
            and not (value is default or (isinstance(value, str | int | float) and value == default))
        ]
    return {
        "call": f"vecsweep.{verb.__name__}({', '.join(['task', *told])})",
        "vecsweep": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "device": (device := _name_device(task, execution)),
    } | ({"repeatable": _tell_repeatable()} if device.startswith("cuda") else {})


class _Words(reprlib.Repr):
    """Arguments in a few words: arrays as lists, functions and schedules by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxdict = self.maxtuple = 12
        self.maxstring = self.maxother = 80

    def repr_ndarray(self, array: Any, level: int) -> str:
        return self.repr1(array.tolist(), level)

    repr_Tensor = repr_ndarray  # noqa: N815 - reprlib goes by the name of the type

    def repr_function(self, function: Any, level: int) -> str:
        return str(function.__name__)

    def repr_Schedule(self, schedule: Any, level: int) -> str:  # noqa: N802 - likewise
        return str(schedule.name)


_words = _Words()


def _tell_repeatable() -> str:
    """Whether the same call on the same GPU gives the same bits: some of its kernels add in any order."""
    if torch.are_deterministic_algorithms_enabled():
        return "bit for bit"
    return "but for rounding; `torch.use_deterministic_algorithms(True)` asks for the same bits"


def _name_device(task: Task, execution: Execution) -> str:
    """Where members train, and on what; a model that is yet to be built says it then."""
    if execution.cluster is not None:
        return "a cluster"
    device = execution.place
    if device is None and isinstance(task.model, nn.Module):
        device = next((p.device for p in task.model.parameters()), None)
    if device is None:
        return "where the model is built"
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
