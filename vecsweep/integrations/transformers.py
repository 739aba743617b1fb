"""Hugging Face Transformers: a Task from a model that returns its own loss and a loader of dict batches.

Transformers itself is not imported here: whoever has such a model has imported it. Not here: what is read of a Trainer
(`_trainer.py`, `_trainer_batches.py`, `_trainer_loss.py`).
"""

import copy
import functools
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vecsweep._types import Batch, Batches, Metric, ModelSource, OptimizerSource, TrainingStep
from vecsweep.integrations._trainer import is_trainer, model_of, optimizer_of, options_of
from vecsweep.integrations._trainer_batches import batches_of, val_batches_of
from vecsweep.integrations._trainer_loss import COUNT, check_training, loss_function_of, weighed
from vecsweep.task import Task

__all__ = ["make_task", "options_of"]

_LR = 5e-5


def make_task(
    model: ModelSource | Any,
    batches: Batches | None = None,
    optimizer: OptimizerSource | None = None,
    val_batches: Batches | None = None,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
) -> Task:
    """Make a Task from a model that is called with the items of a batch and returns its loss.

    The loss is `.loss`, or `["loss"]`, of what `model(**batch)` returns, or the first of a tuple: for models of
    Transformers the batches must hold `labels`, with -100 for what is not to count. Neither model nor batches are
    changed.

    Attention is computed as the model's config says. "sdpa", the usual one, and "eager" are batched; members whose
    attention PyTorch cannot batch ("flash_attention_2", "flex_attention") are trained one after another, with a
    `FallbackWarning`: load the model with `attn_implementation="sdpa"` for a sweep. Gradient checkpointing does nothing
    in a batched pass, where `chunk_size` bounds the memory of activations. While members step, Transformers is kept
    from looking into attention masks for padding that it might leave out: masks are always built whole, which makes no
    difference but rounding, so that the step can be traced.

    Args:
        model: the module, or a function without arguments that builds one; or a Trainer that has not been run (TRL's
            SFTTrainer, too), which brings all the rest along, as far as it is not given. Then a pass over the batches
            is its whole run, in its order for the first seed (but for "group_by_length" and shuffling loaders of its
            class, whose order hangs on what was drawn before), and its losses are those that its `train()` gives at a
            member's learning rate, with what `options_of(trainer)` says. What its class and its callbacks do otherwise
            than Trainer is named in a `FallbackWarning`.
        batches: a DataLoader or other iterable of dicts (or `BatchEncoding`), whose items are the model's arguments.
        optimizer: as in `Task`; None for `AdamW(lr=5e-5, weight_decay=0)`, as `transformers.Trainer` has it unless it
            is told otherwise. Of its lr only the ratios between parameter groups matter to a sweep.
        val_batches: what members are validated on, in the same form.
        metrics: by name, each `(outputs, batch) -> scalar`, the mean over a batch; `outputs` is what the model
            returned. Each takes a forward pass of its own.

    Returns:
        The task, for every verb.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the Trainer's class computes the loss otherwise, or it adds noise to embeddings, or its optimizer
            steps within the backward pass; or its steps are of unlike size, and its model keeps statistics of batches.

    Example:
        `task = make_task(BertForSequenceClassification(config), loader)`, then `vs.range_test(task)`
    """
    step: TrainingStep = _training_step
    if is_trainer(model):
        trainer: Any = model
        loss_function = loss_function_of(trainer)
        check_training(trainer)
        step = weighed(step if loss_function is None else functools.partial(_loss_by, loss_function))
        model = model_of(trainer)
        batches = batches_of(trainer) if batches is None else _as_dicts(batches)
        optimizer = optimizer_of(trainer) if optimizer is None else optimizer
        val_batches = val_batches_of(trainer) if val_batches is None else val_batches
    elif not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        raise TypeError(
            f"`model` must be an nn.Module, a function that builds one, or a Trainer of Transformers; got "
            f"{type(model).__name__}. Pass its parts: `make_task(trainer.model, trainer.get_train_dataloader())`."
        )
    elif batches is None:
        raise TypeError("`batches` must be given with a model; only a Trainer brings its own.")
    else:
        batches = _as_dicts(batches)
    return Task(
        model,
        batches,
        optimizer=_default_optimizer if optimizer is None else optimizer,
        training_step=step,
        val_batches=None if val_batches is None else _as_dicts(val_batches),
        metrics={name: _bind(metric) for name, metric in (metrics or {}).items()},
    )


def _default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.0)


def _training_step(model: nn.Module, batch: Batch) -> Tensor:
    outputs = _call(model, batch)
    loss = outputs[0] if isinstance(outputs, tuple) and outputs else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    if not isinstance(loss, Tensor):
        raise ValueError(  # noqa: TRY004 - what is wrong is the batch
            f"{type(model).__name__} must return a loss; got {type(loss).__name__} in a {type(outputs).__name__}, from "
            f"a batch with {list(batch)}. Put `labels` into the batches."
        )
    return loss


def _loss_by(function: Callable[..., Tensor], model: nn.Module, batch: Batch) -> Tensor:
    """The loss by a Trainer's `compute_loss_func`, or another function like it."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", COUNT)}
    return function(_call(model, inputs), batch.get("labels"), num_items_in_batch=batch.get(COUNT))


def _bind(metric: Callable[[Any, Batch], Any]) -> Metric:
    return lambda model, batch: metric(_call(model, batch), batch)


def _call(model: nn.Module, batch: Batch) -> Any:
    if not isinstance(batch, Mapping | UserDict):
        raise TypeError(
            f"Batches must be dicts of the model's arguments; got {type(batch).__name__}. For others write the step "
            "yourself: `vs.Task(model, batches, training_step=lambda model, batch: ...)`."
        )
    with _masks_unread():
        try:
            return model(**batch)
        except (AttributeError, TypeError) as error:
            lists = [name for name, value in batch.items() if isinstance(value, list)]
            if not lists:
                raise
            raise TypeError(
                f"Batches must hold the tensors that the model takes; got lists as {lists}, of which it says: {error}. "
                'Of a data set of `datasets`, take `data.with_format("torch")`.'
            ) from error


@contextmanager
def _masks_unread() -> Iterator[None]:
    """Keep Transformers from reading the values of attention masks, as it keeps itself while it is compiled.

    It looks for masks without padding, to do without them. In a traced step their values are not known, and on a GPU
    each look waits for the device. The question whether it is being traced is asked in one function (5.23).
    """
    masking: Any = sys.modules.get("transformers.masking_utils")
    is_tracing = getattr(masking, "is_tracing", None)
    if is_tracing is None:
        yield
        return
    masking.is_tracing = lambda tensor=None: True
    try:
        yield
    finally:
        masking.is_tracing = is_tracing


def _as_dicts(source: Any) -> Any:
    """Make plain dicts of the `BatchEncoding` that tokenizers' collators yield: a step on those cannot be traced."""
    if isinstance(source, DataLoader):
        loader = copy.copy(source)
        loader._iterator = None  # of persistent workers, which are the caller's
        loader.collate_fn = _Collate(source.collate_fn)
        return loader
    if isinstance(source, list | tuple):
        return [_as_dict(batch) for batch in source]
    if isinstance(source, Iterator):
        return map(_as_dict, source)
    if not callable(source) or hasattr(source, "__iter__"):
        return source

    @functools.wraps(source)  # whose signature says whether it takes a seed
    def batches(*seed: int) -> Iterator[Batch]:
        return map(_as_dict, source(*seed))

    return batches


class _Collate:
    """A loader's own collate function, and plain dicts after it; a class, so that workers can be sent it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        return _as_dict(self._collate(samples))


def _as_dict(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, UserDict) else batch
