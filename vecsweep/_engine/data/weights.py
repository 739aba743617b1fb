"""How much a batch counts in a mean over batches: as much as there is in it that its loss averages over.

A mean of the losses of batches, each weighed so, is the loss of all of them at once. What a loss averages over are the
elements of the targets: samples, or tokens, or pixels. Those that it ignores do not count, where that can be seen:

    `loss_fn` with an `ignore_index`        targets that differ from it, by the weights of classes that the loss has
    "labels" of a batch that is a mapping   those that differ from -100, the first of each row left out where a causal
                                            language model shifts them

The targets are the second of a pair. With `training_step` they are the entry or attribute "labels", "label", "targets",
"target" or "y", else the second of a pair, else the last tensor. A task may say otherwise: `Task.batch_weight`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vecsweep._engine.data.packing import unpack
from vecsweep._types import Batch, LossFn
from vecsweep.task import Task

_NAMES = ("labels", "label", "targets", "target", "y")
_IGNORED_LABEL = -100  # of transformers' models


def weight_of(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """Weigh a batch: a float64 scalar, on the device of the targets.

    Args:
        task: whose loss averages.
        model: that computes it.
        batch: one batch.

    Raises:
        TypeError: the task's own weight is not a number.
        ValueError: it is more than one.
    """
    batch = unpack(batch)
    if task.batch_weight is not None:
        return _own_weight(task.batch_weight(batch))
    name, targets = _targets_of(batch, is_pair=task.loss_fn is not None)
    if targets is None:
        return torch.ones((), dtype=torch.float64)
    if task.loss_fn is not None:
        return _count_for(task.loss_fn, targets)
    if name == "labels" and isinstance(batch, Mapping):
        labels = targets[..., 1:] if targets.ndim > 1 and _shifts_labels(model) else targets
        return (labels != _IGNORED_LABEL).sum().double()
    return _numel(targets)


def _own_weight(value: Any) -> Tensor:
    """Check what a task's own function gave; what its sign is, nobody waits for."""
    try:
        weight = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`batch_weight` must return a number; got {type(value).__name__}.") from None
    if weight.numel() != 1:
        raise ValueError(
            f"`batch_weight` must return one number for a batch; got shape {tuple(weight.shape)}. Sum it up."
        )
    return weight.detach().reshape(())


def _targets_of(batch: Batch, *, is_pair: bool) -> tuple[str | None, Tensor | None]:
    """The tensor that a loss averages over, and the name it goes by in the batch, if it does."""
    if not is_pair:
        for name in _NAMES:
            value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
            if (targets := _as_tensor(value)) is not None:
                return name, targets
    if isinstance(batch, tuple | list) and len(batch) == 2 and (tensors := _tensors_in(batch[1])):
        return None, tensors[0]
    tensors = _tensors_in(batch)
    return None, tensors[-1] if tensors else None


def _tensors_in(part: Any) -> list[Tensor]:
    """The tensors and arrays with an axis in a part of a batch, in the attributes of an object, too."""
    is_object = hasattr(part, "__dict__") and not isinstance(part, Tensor)
    leaves = pytree.tree_leaves(vars(part) if is_object else part)
    return [tensor for tensor in map(_as_tensor, leaves) if tensor is not None and tensor.ndim > 0]


def _as_tensor(leaf: Any) -> Tensor | None:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
        return torch.from_numpy(leaf)
    return leaf if isinstance(leaf, Tensor) else None


def _count_for(loss_fn: LossFn, targets: Tensor) -> Tensor:
    """Count the targets that a loss function does not ignore, by its weights of classes."""
    ignored = _option(loss_fn, "ignore_index")
    if not isinstance(ignored, int) or targets.is_floating_point():
        return _numel(targets)
    counted, weights = targets != ignored, _option(loss_fn, "weight")
    if not isinstance(weights, Tensor):
        return counted.sum().double()
    return weights.double()[targets.where(counted, 0).long()].where(counted, 0.0).sum()


def _numel(targets: Tensor) -> Tensor:
    return torch.tensor(float(targets.numel()), dtype=torch.float64)


def _option(loss_fn: LossFn, name: str) -> Any:
    """An option of a loss: an attribute of a module, or what a function is called with unless told otherwise."""
    if isinstance(loss_fn, nn.Module):
        return getattr(loss_fn, name, None)
    try:
        parameter = inspect.signature(loss_fn).parameters.get(name)
    except (TypeError, ValueError):  # a function of C has none
        return None
    return None if parameter is None else parameter.default


def _shifts_labels(model: nn.Module) -> bool:
    """Whether the model is one of transformers whose labels are the tokens, each predicted from those before."""
    names = [type(module).__name__ for module in model.modules()]
    return any(
        "ForCausalLM" in name or (name.endswith("LMHeadModel") and not name.endswith("WithLMHeadModel"))
        for name in names
    )
