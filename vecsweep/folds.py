"""Folds of cross-validation: members with batches of their own to train on and to be validated on, as seeds have.

A fold is a seed to all that trains, compares and draws. Of the seeds of such a run, `seed % folds` is the fold, and
`seed // folds` the seed that was asked for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vecsweep._types import Batch
from vecsweep.execution import MOST_MEMBERS, MOST_SEED, check_count
from vecsweep.task import Task, is_by_seed


@dataclass(frozen=True, slots=True)
class _OfFold:
    """Batches of a seed's fold.

    Attributes:
        source: from a fold to its batches.
        num_folds: of the run.
    """

    source: Callable[[int], Iterable[Batch]]
    num_folds: int

    def __call__(self, seed: int) -> Iterable[Batch]:
        return self.source(seed % self.num_folds)


def check_folds(task: Task, folds: int) -> int:
    """Check how many folds a task is trained on.

    Args:
        task: whose `batches` and `val_batches` are functions of the fold.
        folds: how many.

    Raises:
        TypeError: the batches are not functions of the fold.
        ValueError: `folds` is no whole number, or there are too few or too many.
    """
    folds = check_count("folds", folds, least=2, most=MOST_MEMBERS)
    for name in ("batches", "val_batches"):
        source: Any = getattr(task, name)
        if not is_by_seed(source):
            raise TypeError(
                f"`folds` needs a task whose `{name}` is a function of the fold, 0 to {folds - 1}; got "
                f"{type(source).__name__}. Pass `{name}=lambda fold: loader_of(fold)`."
            )
    return folds


def by_fold(task: Task, seeds: Sequence[int], folds: int) -> tuple[Task, list[int]]:
    """Return the task by seeds that stand for folds, and those seeds: each fold of the first, each of the second.

    Args:
        task: whose `batches` and `val_batches` are functions of the fold.
        seeds: that were asked for.
        folds: how many.

    Raises:
        ValueError: a seed is too large.

    Example:
        >>> from torch import nn, optim
        >>> parts = nn.Linear(1, 1), lambda fold: [fold], nn.MSELoss(), lambda params: optim.SGD(params)
        >>> task = Task(*parts, val_batches=lambda fold: [-fold])
        >>> _, seeds = by_fold(task, [0, 1], folds=3)
        >>> seeds
        [0, 1, 2, 3, 4, 5]
    """
    check_count("seeds", max(seeds) * folds + folds, most=MOST_SEED)
    return of_folds(task, folds), [seed * folds + fold for seed in seeds for fold in range(folds)]


def of_folds(task: Task, folds: int) -> Task:
    """Return a task by seeds that stand for folds."""
    return replace(task, batches=_OfFold(task.batches, folds), val_batches=_OfFold(task.val_batches, folds))  # type: ignore[arg-type]


def folds_of(task: Task) -> int | None:
    """Return how many folds the seeds of a task stand for; None where they stand for themselves."""
    return task.batches.num_folds if isinstance(task.batches, _OfFold) else None
