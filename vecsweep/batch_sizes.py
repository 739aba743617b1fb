"""Batch sizes side by side: members of each are a sweep of their own, on the same samples, joined to one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vecsweep._arguments import check_callbacks
from vecsweep._errors import Interrupted
from vecsweep.execution import check_count
from vecsweep.results import Sweep, join
from vecsweep.results.by_samples import by_samples
from vecsweep.task import Task
from vecsweep.tasks.recut import recut

NAME = "batch_size"


def sweep_sizes(sweep: Callable[..., Sweep], task: Task, given: Mapping[str, Any]) -> Sweep:
    """Sweep at each batch size, and put all members together.

    A step is as many samples as the largest size has, so that curves, evaluations and schedules of all members cover
    the same data: a member of a quarter of that size takes four updates a step.

    Args:
        sweep: the verb.
        task: what is trained.
        given: the verb's other arguments by name, `vary` with batch sizes among them.

    Raises:
        TypeError: the sizes are no list.
        ValueError: a size does not divide the largest, or an argument does not go with several sizes.
        Interrupted: Ctrl-C; its `result` holds the sizes that were done.
    """
    rest = {name: values for name, values in given["vary"].items() if name != NAME}
    sizes = _check(given["vary"][NAME], task, given)
    check_callbacks(given["callbacks"])
    largest, done = max(sizes), dict[float, Sweep]()
    for size in sizes:
        num_updates = largest // size
        lengths = ("num_steps", "val_every", *(["until"] if given["num_steps"] is not None else []))
        own: dict[str, Any] = {
            name: check_count(name, given[name]) * num_updates for name in lengths if given[name] is not None
        }
        if given["tensorboard"] is not None:
            own["tensorboard"] = Path(given["tensorboard"]) / f"{NAME} {size}"
        if given["callbacks"] is not None:
            own["callbacks"] = [observer.part(f"{NAME} {size}") for observer in given["callbacks"]]
        try:
            runs = sweep(recut(task, size, largest), **{**given, "vary": rest or None, **own})
        except Interrupted as stop:
            raise Interrupted(join(done, NAME) if done else stop.result) from None
        done[size] = by_samples(runs, num_updates)
    return join(done, NAME)


def _check(sizes: Any, task: Task, given: Mapping[str, Any]) -> list[int]:
    """Return the batch sizes."""
    if not isinstance(sizes, Sequence | np.ndarray) or isinstance(sizes, str):
        raise TypeError(f"`vary[{NAME!r}]` must be a list of whole numbers; got {sizes!r:.80}. Pass [{sizes!r:.40}].")
    if len(sizes) == 0:
        raise ValueError(f"`vary[{NAME!r}]` must hold at least one size; got none.")
    whole = [int(size) if isinstance(size, float) and size.is_integer() else size for size in sizes]
    listed = [check_count(f"vary[{NAME!r}]", size) for size in whole]
    for i, size in enumerate(listed):
        if size in listed[:i]:
            raise ValueError(f"`vary[{NAME!r}]` must hold different sizes; got {size} again. Drop the repeated.")
        if max(listed) % size:
            raise ValueError(
                f"`vary[{NAME!r}]` must hold sizes that divide the largest, so that all see the same samples; got "
                f"{size} and {max(listed)}. Take powers of two."
            )
    for name, remedy in (
        ("checkpoint", "Keep a sweep of each size in a folder of its own"),
        ("prune", "Sweep each size"),
    ):
        if given[name] is not None:
            raise ValueError(
                f"`{name}` goes with one batch size; got {len(listed)}. {remedy}, and put them together with "
                "`vecsweep.join`."
            )
    if task.is_one_pass:
        raise ValueError("Each batch size reads the batches again; got an iterator. Pass a list, or a DataLoader.")
    return listed
