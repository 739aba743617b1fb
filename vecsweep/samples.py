"""How many samples a source of batches has, as far as that is to be seen without reading it."""

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree  # torch.func has no public way to go through nested containers

from vecsweep.task import Task


def is_validated_soon(task: Task, num_steps: int) -> bool:
    """Whether a pass over the validation batches is no more work than so many steps, a forward pass being a third."""
    if task.val_batches is None:
        return True
    validated, batch = _num_samples(task.val_batches), _batch_size(task.batches)
    return validated is not None and batch is not None and validated <= 3 * num_steps * batch


def _num_samples(source: Any) -> int | None:
    """How many samples a source of batches has; None if it does not say."""
    if isinstance(source, list | tuple):
        return sum(_num_rows(batch) for batch in source)
    size = _batch_size(source)
    return None if size is None or not hasattr(source, "__len__") else len(source) * size


def _batch_size(source: Any) -> int | None:
    """How many samples a batch of a source has; likewise."""
    if isinstance(source, list | tuple):
        return _num_rows(source[0]) if source else None
    size = getattr(source, "batch_size", None)
    return size if isinstance(size, int) else None


def _num_rows(batch: Any) -> int:
    """The first axis of a batch's first tensor; 1 where there is none."""
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    return 1 if first is None or first.ndim == 0 else len(first)
