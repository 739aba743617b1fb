"""PyTorch-Ignite: a Task from what `create_supervised_trainer` is given.

Ignite itself is not needed, nor imported: a supervised trainer is a closure over these parts and shows none of them,
so they are handed over as they are handed to it.

The range test of such a task differs from Ignite's `FastaiLRFinder` (0.5.5), which trains the first two steps at the
same learning rate, tries neither end of the range, and records each loss beside the learning rate of the next step.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._types import Batch, Batches, LossFn, Metric
from vecsweep.task import Task

PrepareBatch = Callable[..., tuple[Any, Any]]  # (batch, device=..., non_blocking=...) -> (inputs, targets)


def make_task(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFn,
    batches: Batches,
    *,
    prepare_batch: PrepareBatch | None = None,
    model_transform: Callable[[Any], Any] | None = None,
    model_fn: Callable[[nn.Module, Any], Any] | None = None,
    val_batches: Batches | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Task:
    """Make a Task from the parts of a supervised trainer; none of them is changed.

    The loss of a batch is that of `ignite.engine.create_supervised_trainer`:
    `inputs, targets = prepare_batch(batch)`, then `loss_fn(model_transform(model_fn(model, inputs)), targets)`. Its
    `output_transform` has no counterpart: members' losses are recorded as they are. Its `device`, `amp_mode` and
    `gradient_accumulation_steps` are options of the verbs: `device`, `precision` and `accumulation_steps`.

    Args:
        model: the module that is trained.
        optimizer: over its parameters; a template, never stepped.
        loss_fn: `(outputs, targets) -> scalar`, or a module such as `nn.CrossEntropyLoss()`.
        batches: the data that the trainer is run on.
        prepare_batch: `(batch, device=..., non_blocking=...) -> (inputs, targets)`; None where batches are such pairs.
        model_transform: what is done to the model's output before the loss; None for nothing.
        model_fn: `(model, inputs) -> output`; None calls the model.
        val_batches: what members are validated on, in the same form.
        metrics: by name, each `(outputs, targets) -> scalar`, the mean over a batch.

    Returns:
        The task, for every verb.

    Raises:
        TypeError: an argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> from vecsweep.integrations.ignite import make_task
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [{"x": torch.ones(8, 4), "y": torch.zeros(8, 1)}]
        >>> task = make_task(
        ...     model,
        ...     optimizer,
        ...     nn.functional.mse_loss,
        ...     batches,
        ...     prepare_batch=lambda batch, device, non_blocking: (batch["x"], batch["y"]),
        ... )
        >>> vs.range_test(task, start_lr=1e-3, end_lr=1, num_lrs=4, num_steps=5).lrs.shape
        (4,)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module; got {type(model).__name__}. Pass the trainer's own.")
    parts = {"prepare_batch": prepare_batch, "model_transform": model_transform, "model_fn": model_fn}
    for name, part in parts.items():
        if part is not None and not callable(part):
            raise TypeError(f"`{name}` must be a function, or None; got {type(part).__name__}.")
    metrics = {} if metrics is None else metrics
    if prepare_batch is None and model_transform is None and model_fn is None:
        return Task(model, batches, loss_fn, optimizer, val_batches=val_batches, metrics=metrics)

    def compute(function: Callable[[Any, Any], Any], model: nn.Module, batch: Batch) -> Any:
        """Apply the loss, or a metric, to what the trainer would apply it to."""
        if prepare_batch is not None:
            device = next(model.parameters()).device
            batch = prepare_batch(batch, device=device, non_blocking=False)
        inputs, targets = batch
        outputs = model(inputs) if model_fn is None else model_fn(model, inputs)
        return function(outputs if model_transform is None else model_transform(outputs), targets)

    def training_step(model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = compute(loss_fn, model, batch)
        return loss

    def bind(metric: Metric) -> Metric:
        return lambda model, batch: compute(metric, model, batch)

    bound = {name: bind(metric) for name, metric in metrics.items()}
    return Task(
        model, batches, optimizer=optimizer, training_step=training_step, val_batches=val_batches, metrics=bound
    )
