"""Where batches come from: which sources may write into what they have yielded, and how long a pass over them is."""

import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, default_collate

from vecsweep._bars import Bar
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.loaders import END, loaders_ended, next_batch, opened
from vecsweep._engine.data.packing import is_flat
from vecsweep._engine.data.waypoints import is_stateful
from vecsweep._errors import warn_of_stumble
from vecsweep._interrupts import raised_at_once
from vecsweep._types import Batch
from vecsweep.execution import Execution
from vecsweep.task import Task
from vecsweep.tasks.recut import Recut

_MAX_WORKERS = 16  # processes of loaders, on a machine with fewer processors
_MAX_COUNTED_BATCHES = 1_000_000  # of a source that is read to see how many it has
_PATIENCE_S = 10.0  # of counting batches
_MAX_VALIDATION_BATCHES = 100_000  # of a source that does not say how many it has


def is_fresh(source: Any) -> bool:
    """Whether a source never writes to a batch after it has yielded it, so that batches may be held on to.

    That is so where none of the source's own code runs from one batch to the next, as in a list, and where each batch
    is a new copy of its samples, as PyTorch's own way to collate them makes. Any other source may refill a buffer that
    it has yielded. That cannot be seen in time: at the buffer's second appearance its first content is gone.
    """
    if isinstance(source, list | tuple):
        return _is_plain(source)
    return (
        isinstance(source, DataLoader)
        and type(source).__iter__ is DataLoader.__iter__
        and source.collate_fn is default_collate
        and source.batch_sampler is not None
    )


def is_quiet(source: Any) -> bool:
    """Whether nobody's code runs as batches are read and moved, so that it neither draws nor changes anything."""
    return isinstance(source, list | tuple) and _is_plain(source) and all(map(is_flat, source))


def _is_plain(source: list[Batch] | tuple[Batch, ...]) -> bool:
    return type(source).__iter__ in (list.__iter__, tuple.__iter__)


def own_loader(batches: Any, *, has_new_workers: bool = False) -> Any:
    """A copy of a loader that holds on to its iterator, which other seeds and the caller use too.

    Args:
        batches: any source.
        has_new_workers: whether the copy's workers end with each epoch.
    """
    if isinstance(batches, Recut):
        return replace(batches, source=own_loader(batches.source, has_new_workers=has_new_workers))
    if not isinstance(batches, DataLoader) or not (batches.persistent_workers or is_stateful(batches)):
        return batches
    loader = copy.copy(batches)
    loader._iterator = None
    if has_new_workers:
        vars(loader)["persistent_workers"] = False  # the loader itself lets nobody set it
    return loader


def read_over(source: Iterator[Batch], num: int, hides_progress: bool | None) -> tuple[int, Batch]:
    """Read over so many batches, or as many as there are; return how many, and the last."""
    last, num_read = None, 0
    bar = Bar(total=num, desc="reading forward", unit=" batches", disable=hides_progress, delay=1, leave=False)
    with bar:
        while num_read < num and (batch := next_batch(source)) is not END:
            last, num_read = batch, num_read + 1
            bar.update()
    return num_read, last


def length_of(source: Any) -> int | None:
    """How many batches a source says that a pass over it has; None if it does not say."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def count_batches(task: Task, seed: int, execution: Execution, streams: Streams, most: int | None) -> int | None:
    """Count the batches of an epoch: the length of the source, or, where it has none, what one pass yields.

    Args:
        task: whose batches.
        seed: whose.
        execution: whether progress is shown.
        streams: the random streams of the run.
        most: batches that are read; None for all.

    Returns:
        None if so many were read and the end had not been reached.

    Raises:
        ValueError: all were to be read, and there is no end of them.
    """
    with streams.borrowed(), loaders_ended():
        streams.use("batches", seed)
        source = own_loader(task.open(seed))
        length = length_of(source)
        if length is not None:
            return length
        num_read = _count(opened(iter(source)), execution, _MAX_COUNTED_BATCHES if most is None else most)
    if most is None and num_read == _MAX_COUNTED_BATCHES:
        raise ValueError(
            f"`epochs` needs batches that come to an end; {num_read:,} were read, and there were more. Pass "
            "`num_steps`, or batches that have a length."
        )
    return num_read if most is None or num_read < most else None


def check_validation_ends(task: Task, seed: int, execution: Execution) -> None:
    """Raise ValueError where a seed's validation batches have no length, and go on for too long to have an end.

    The stream from which they draw must be in place.
    """
    source = task.open_validation(seed, own_loader(task.val_batches))
    if length_of(source) is not None:
        return
    if _count(opened(iter(source)), execution, _MAX_VALIDATION_BATCHES) == _MAX_VALIDATION_BATCHES:
        raise ValueError(
            f"`val_batches` must come to an end; {_MAX_VALIDATION_BATCHES:,} were read, and there were more. Pass a "
            "list of those to validate on, as `list(itertools.islice(source, 100))`; what has a length may be longer."
        )


def num_seeds_at_once(task: Task, seeds: Sequence[int], *, has_train_metrics: bool) -> int | None:
    """How many seeds may have worker processes of their own at the same time; None where none have any.

    A seed's workers cannot serve another: what they draw, and what their copies of the data set keep, are its own. So
    seeds take turns: there are no more workers than 16, or than processors, or than one seed needs, whichever is most.

    Args:
        task: whose batches.
        seeds: of the run.
        has_train_metrics: whether each seed has a second pass over its batches open while it is evaluated.
    """
    if len(set(seeds)) == 1:
        return None
    num_of_seed = getattr(task.open(seeds[0]), "num_workers", 0) * (2 if has_train_metrics else 1)
    num_common = getattr(task.val_batches, "num_workers", 0)
    if task.validates_by_seed:
        num_of_seed += getattr(task.open_validation(seeds[0]), "num_workers", 0)
    if num_of_seed == 0:
        return None
    return max(1, (max(_MAX_WORKERS, os.cpu_count() or 1) - num_common) // num_of_seed)


def _count(source: Iterator[Batch], execution: Execution, most: int | None) -> int:
    """Count batches, and show that this is what takes the time."""
    with Bar(desc="counting batches", unit=" batches", disable=execution.hides_progress, delay=1, leave=False) as bar:
        num_read, told_at = 0, time.monotonic() + _PATIENCE_S
        with raised_at_once():
            for _ in islice(source, most):
                num_read += 1
                bar.update()
                if time.monotonic() >= told_at:
                    told_at = math.inf
                    warn_of_stumble(
                        f"The batches have no length, so that those of an epoch are counted: {num_read:,} so far. If "
                        "they never end, stop this, and give `num_steps` in place of `epochs`."
                    )
    return num_read
