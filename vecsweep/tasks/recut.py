"""Batches of another size, cut from those of a source: the same samples, in the same order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from vecsweep._types import Batch, Batches
from vecsweep.task import Task


def recut(task: Task, size: int, largest: int) -> Task:
    """Return the task with training batches of another size.

    Args:
        task: whose batches hold samples along the first axis of all their tensors.
        size: samples in a batch.
        largest: a multiple of it. Of each pass over the source so many samples are left out that whole batches of this
            size remain, so that tasks that are cut to any size that divides it are trained on the same samples.
    """
    if callable(task.batches) and not hasattr(task.batches, "__iter__"):
        return replace(task, batches=_RecutOfSeed(task.open, size, largest))
    return replace(task, batches=Recut(task.batches, size, largest))


@dataclass(frozen=True, slots=True)
class _RecutOfSeed:
    """What `recut` makes of a function: from a seed to its batches."""

    open: Callable[[int], Batches]
    size: int
    largest: int

    def __call__(self, seed: int) -> "Recut":
        return Recut(self.open(seed), self.size, self.largest)


@dataclass(frozen=True, slots=True)
class Recut:
    """Batches cut from those of a source.

    Attributes:
        source: of batches, of any size.
        size: samples in a batch.
        largest: samples that are cut together; what an epoch has beyond a multiple of it is left out.

    Example:
        >>> [inputs.tolist() for (inputs,) in Recut([(torch.arange(3),), (torch.arange(3, 9),)], size=2, largest=4)]
        [[0, 1], [2, 3], [4, 5], [6, 7]]
    """

    source: Any
    size: int
    largest: int

    @property
    def num_workers(self) -> int:
        """Processes that load for the source."""
        return getattr(self.source, "num_workers", 0)

    def __len__(self) -> int:
        if (num_samples := _num_samples(self.source)) is None:
            raise TypeError("The source does not say how many samples it has.")
        return num_samples // self.largest * (self.largest // self.size)

    def __iter__(self) -> Iterator[Batch]:
        held: list[list[Any]] = []  # what was read and not cut yet, leaf by leaf
        num_held = 0
        for batch in self.source:
            leaves, structure = pytree.tree_flatten(batch)
            held.append(leaves)
            num_held += _num_rows(leaves)
            if num_held < self.largest:
                continue
            together = [_joined(parts) for parts in zip(*held, strict=True)]
            num_cut = num_held - num_held % self.largest
            for begin in range(0, num_cut, self.size):
                yield pytree.tree_unflatten([leaf[begin : begin + self.size] for leaf in together], structure)
            held, num_held = [[leaf[num_cut:] for leaf in together]], num_held - num_cut


def _num_samples(source: Any) -> int | None:
    """How many samples a pass over a source has, if it says so."""
    if isinstance(source, list | tuple):
        return sum(_num_rows(pytree.tree_leaves(batch)) for batch in source)
    if type(source) is DataLoader and source.batch_size is not None and hasattr(source.sampler, "__len__"):
        num_samples: int = len(source) * source.batch_size if source.drop_last else len(source.sampler)  # type: ignore[arg-type]
        return num_samples
    return None


def _num_rows(leaves: list[Any]) -> int:
    """How many samples a batch holds."""
    lengths = {len(leaf) if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        raise TypeError(
            "`batch_size` can be varied where batches hold nothing but tensors, or arrays, with the samples along the "
            f"first axis; got {', '.join(_describe(leaf) for leaf in leaves)}. Sweep over tasks of your own, and put "
            "them together with `vecsweep.join`."
        )
    return lengths.pop() or 0


def _joined(parts: tuple[Any, ...]) -> Any:
    """Put the samples of several batches together."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
        raise ValueError(
            "`batch_size` can be varied where samples are of one shape; got some of "
            f"{' and '.join(_describe(part) for part in parts[:2])}. Pad them all alike."
        )
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _describe(leaf: Any) -> str:
    return f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor | np.ndarray) else type(leaf).__name__
