"""What goes from process to process: tasks, as a user wrote them; and orders and records, whose tensors are copied out.

What is unpickled here was written by a process of the same user, on a cluster that they trust.
"""

import inspect
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsweep._types import ByteArray
from vecsweep.task import Task

_MAX_DEPTH = 8  # of attributes, to which a culprit is named


@dataclass(frozen=True, slots=True, repr=False)
class MadeTask(Task):
    """A task that each process makes for itself: on its way it is what makes it, and what was replaced in it since.

    Attributes:
        make: makes the task.
        made: as it made it here.
    """

    make: Callable[[], Task] | None = None
    made: Task | None = None

    @classmethod
    def of(cls, make: Callable[[], Task]) -> "MadeTask":
        """Make a task here.

        Raises:
            TypeError: what is made is something else.
        """
        task = make()
        if not isinstance(task, Task):
            raise TypeError(
                f"A function in place of `task` must return a vecsweep.Task; got {type(task).__name__}. Return "
                "`Task(model, batches, ...)`."
            )
        return cls(**{field.name: getattr(task, field.name) for field in fields(Task)}, make=make, made=task)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: (getattr(self, field.name), getattr(self.made, field.name)) for field in fields(Task)}
        return _remake, (self.make, {name: own for name, (own, made) in values.items() if own is not made})


def _remake(make: Callable[[], Task], replaced: dict[str, Any]) -> MadeTask:
    task = MadeTask.of(make)
    given = {field.name: getattr(task, field.name) for field in fields(task)}
    return MadeTask(**(given | replaced))


def pack_task(task: Task) -> bytes:
    """Pickle a task, functions and all.

    Raises:
        TypeError: a part of it cannot be pickled, which the message names.
    """
    from ray import cloudpickle

    try:
        return _pickled(task)
    except Exception as error:  # whatever an object's own way of being pickled raises
        parts = (
            [("make", task.make)]
            if isinstance(task, MadeTask)
            else [(f.name, getattr(task, f.name)) for f in fields(Task)]
        )
        for name, part in parts:
            if (found := _culprit(name, part, cloudpickle.dumps, _MAX_DEPTH)) is not None:
                path, cause = found
                raise TypeError(
                    f"A task goes to other processes, and `{path}` cannot be sent: {cause}. Pass a function that makes "
                    "the task in place of it, and make, open or connect that inside: each process calls it for itself."
                ) from error
        raise


def _culprit(
    path: str, value: object, dumps: Callable[[object], bytes], depth: int
) -> tuple[str, BaseException] | None:
    """Find what cannot be pickled, as deep inside as it can be named; None if this can."""
    try:
        dumps(value)
    except Exception as error:
        inner = (_culprit(name, part, dumps, depth - 1) for name, part in _parts(path, value)) if depth else ()
        return next((found for found in inner if found is not None), (path, error))
    return None


def _parts(path: str, value: object) -> Iterable[tuple[str, object]]:
    """What an object refers to, by name."""
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]", own) for key, own in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{path}[{k}]", own) for k, own in enumerate(value)]
    if isinstance(value, FunctionType):
        try:
            seen = inspect.getclosurevars(value)
        except ValueError:  # a cell that is empty yet
            return []
        outside = {**seen.nonlocals, **seen.globals}
        return [(name, own) for name, own in outside.items() if not isinstance(own, ModuleType)]
    return [(f"{path}.{name}", own) for name, own in getattr(value, "__dict__", {}).items()]


def pack(value: object) -> bytes:
    """Pickle an order or a record; of a tensor that is part of a larger one only that part goes along."""
    return _pickled(value, copies_tensors=True)


def unpack(data: bytes, device: torch.device | None = None) -> Any:
    """Unpickle it; its plain tensors are put on a device, the CPU if there is none."""
    return _Unpickler(io.BytesIO(data), device).load()


def _pickled(value: object, *, copies_tensors: bool = False) -> bytes:
    from ray import cloudpickle

    class Pickler(cloudpickle.CloudPickler):
        def persistent_id(self, obj: Any) -> Any:
            is_plain = type(obj) is Tensor and obj.layout == torch.strided and not obj.requires_grad
            return _content(obj) if copies_tensors and is_plain else None

        def reducer_override(self, obj: Any) -> Any:
            # The other side may not have the device.
            if isinstance(obj, Tensor) and obj.device.type != "cpu":
                there = obj.detach().cpu()
                is_parameter = isinstance(obj, nn.Parameter)
                return (nn.Parameter, (there, obj.requires_grad)) if is_parameter else there.__reduce_ex__(2)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _content(tensor: Tensor) -> tuple[ByteArray, torch.dtype, tuple[int, ...], tuple[int, ...]]:
    """The numbers of a tensor, and how they are to be read."""
    stride = torch.empty_like(tensor, device="meta").stride()  # the same order of axes, without gaps
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu")
    flat.as_strided(tensor.shape, stride).copy_(tensor.detach())
    return flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape), stride


class _Unpickler(pickle.Unpickler):
    """Puts tensors together again."""

    def __init__(self, file: io.BytesIO, device: torch.device | None) -> None:
        super().__init__(file)
        self._device = device

    def persistent_load(self, pid: Any) -> Tensor:
        data, dtype, shape, stride = pid
        flat = torch.from_numpy(np.array(data)).view(dtype)
        tensor = torch.empty(0, dtype=dtype, device="cpu").set_(flat.untyped_storage(), 0, shape, stride)
        return tensor if self._device is None else tensor.to(self._device)
