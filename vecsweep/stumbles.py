"""Ordinary stumbles: what is said of a task that runs, but is likely not what was meant, and of errors that say little.

Not here: what is refused, which is told where it is found, and doubts about what came of a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._cores import find_load
from vecsweep._errors import warn_of_stumble
from vecsweep._types import Batch
from vecsweep.task import Task

_LEAST = 4  # targets, from which on it is no chance that all are the same


def look_at_task(task: Task) -> None:
    """Warn of a loss that is a sum, and of a scheduler that nobody will follow."""
    if getattr(task.loss_fn, "reduction", None) == "sum":
        warn_of_stumble(
            "`loss_fn` sums over the batch, so that gradients, and the learning rates that suit them, go with its "
            'size, and a ragged last batch counts less. Pass `reduction="mean"`, unless the sum is meant.'
        )
    if isinstance(task.optimizer, Optimizer) and any("initial_lr" in group for group in task.optimizer.param_groups):
        warn_of_stumble(
            "A scheduler is attached to `optimizer`; no member follows it. Pass a function that builds it, as in "
            "`schedules=[vecsweep.schedules.from_torch(lambda optimizer: StepLR(optimizer, 10))]`, and an optimizer "
            "without one."
        )
    if isinstance(task.optimizer, Optimizer):
        look_at_optimizer(task.optimizer)


def look_at_optimizer(optimizer: Optimizer) -> None:
    """Warn of a weight decay that goes by the learning rate that an optimizer was made with (of timm's, for one)."""
    if any(group.get("corrected_weight_decay") for group in optimizer.param_groups):
        lr = optimizer.defaults["lr"]
        warn_of_stumble(
            f"{type(optimizer).__name__} with `corrected_weight_decay` reckons with the learning rate that it was made "
            f"with, {lr:.6g}: a member's weight decay is its lr squared over that one, which was to be its own. Leave "
            "the correction off to compare learning rates."
        )


def look_at_cores(task: Task, place: torch.device | None) -> None:
    """Warn of threads that will spin on cores that other work keeps busy."""
    if place is None and isinstance(task.model, nn.Module):
        place = next((p.device for p in task.model.parameters()), None)
    is_on_cpu = place is None or place.type == "cpu"
    if is_on_cpu and torch.get_num_threads() > 1 and find_load(2.0) is not None:
        warn_of_stumble(  # in the same words each time, which Python says once
            "The cores are busy with other work: their load is more than twice their number. PyTorch's threads spin "
            "while they wait for each other, and on busy cores a run has taken 15 times as long. Set "
            "OMP_WAIT_POLICY=PASSIVE before Python starts, or call `torch.set_num_threads(1)`."
        )


def look_at_batch(task: Task, batch: Batch) -> None:
    """Warn of a first batch that is one sample, or whose classes are all the same, as of data that are not shuffled."""
    targets = _targets(task, batch)
    if targets is None or targets.device.type == "meta":
        return
    if targets.dim() == 0:
        warn_of_stumble(
            "The first batch is a single sample: its target has no axis. If `batches` is a data set, wrap it: "
            "`DataLoader(dataset, batch_size=32, shuffle=True)`."
        )
    elif targets.is_floating_point() or targets.is_complex() or targets.numel() < _LEAST:
        return
    elif bool((targets == targets.flatten()[0]).all()):
        warn_of_stumble(
            f"All {targets.numel()} targets of the first batch are {int(targets.flatten()[0])}, as in data that are "
            "sorted by class. Shuffle them: `DataLoader(..., shuffle=True)`."
        )


@contextmanager
def explained(task: Task, batch: Batch) -> Iterator[None]:
    """Add to an error of a pass what it may come from."""
    try:
        yield
    except Exception as error:
        explain(error, task, batch)
        raise


def explain(error: Exception, task: Task, batch: Batch) -> None:
    """Add to an error what it may come from, if that is known."""
    if isinstance(error, RuntimeError | IndexError | TypeError | ValueError):
        note = _note(str(error), task, batch)
        if note is not None and note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _note(message: str, task: Task, batch: Batch) -> str | None:
    """Say what an error may come from; None where that is not known."""
    if "second time" in message or "does not require grad and does not have a grad_fn" in message:
        return (
            "A loss is returned, and vecsweep takes its gradient and steps: leave `loss.backward()`, "
            "`optimizer.step()` and `optimizer.zero_grad()` out of `training_step`."
        )
    if "not numpy.ndarray" in message:
        return (
            "The batches hold NumPy arrays. Make tensors of them by `torch.from_numpy(...)`, once, or take a "
            "DataLoader, which does."
        )
    if "more than 1 value per channel" in message:
        return (
            "Batch norm cannot train on one sample, such as a last batch that is left over. Pass "
            "`DataLoader(..., drop_last=True)`."
        )
    targets = _targets(task, batch)
    if targets is None:
        return None
    shape = tuple(targets.shape)
    if "multi-target" in message or "1D target" in message:
        return (
            f"The targets of the batch have shape {shape}; classes are one number for each sample. "
            "Pass `targets.squeeze(-1)`."
        )
    if "out of bounds" in message and not targets.is_floating_point():
        return (
            f"The targets of the batch are from {int(targets.min())} to {int(targets.max())}; with k outputs, "
            "classes are 0 to k - 1."
        )
    if "must be the same as input size" in message:
        return (
            f"The targets of the batch have shape {shape}, and the model's outputs another. Give both the same, as by "
            "`outputs.squeeze(-1)` in the loss, or `targets[:, None].float()`."
        )
    if "class probabilities" in message:
        return (
            f"The targets of the batch are {targets.dtype} of shape {shape}. Pass `targets.argmax(1)` where they are "
            "one-hot codes, `targets.float()` where they are probabilities."
        )
    if "dtype" in message or "scalar type" in message or "Input type" in message:  # torch 2.13, 2.11, convolutions
        return _note_on_dtypes(message, task, batch[0], targets)
    return None


def _note_on_dtypes(message: str, task: Task, inputs: object, targets: Tensor) -> str | None:
    """Say which numbers are of another type than was expected."""
    own = next((p.dtype for p in task.model.parameters()), None) if isinstance(task.model, nn.Module) else None
    if "Long" in message and targets.is_floating_point():
        return f"The targets of the batch are {targets.dtype}; classes are whole numbers. Pass `targets.long()`."
    if own is None:
        return None
    if isinstance(inputs, Tensor) and inputs.dtype != own and (inputs.is_floating_point() or "Long" not in message):
        return f"The inputs of the batch are {inputs.dtype}, the model's parameters {own}. Pass `inputs.to({own})`."
    if targets.dtype != own:
        return f"The targets of the batch are {targets.dtype}, the model's outputs {own}. Pass `targets.to({own})`."
    return None


def _targets(task: Task, batch: Batch) -> Tensor | None:
    """The targets of a pair."""
    if task.loss_fn is None or not isinstance(batch, tuple | list) or len(batch) != 2:
        return None
    return batch[1] if isinstance(batch[1], torch.Tensor) else None
