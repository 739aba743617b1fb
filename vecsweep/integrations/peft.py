"""PEFT: a Task from a model with an adapter, and members' adapters in PEFT's own files.

What is frozen, the base, is in memory once, for the caller's model and for all members; only the adapters are N. PEFT
itself is not imported here: whoever has such a model has imported it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vecsweep._types import Batch, Batches, ModelSource, OptimizerSource
from vecsweep.integrations import transformers
from vecsweep.integrations._trainer import is_trainer
from vecsweep.results import Sweep
from vecsweep.task import Task


def make_task(
    model: ModelSource | Any,
    batches: Batches | None = None,
    optimizer: OptimizerSource | None = None,
    val_batches: Batches | None = None,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
) -> Task:
    """Make a Task from what `peft.get_peft_model` returns; neither the model nor the batches are changed.

    The loss is what `model(**batch)` returns as such, as in `vecsweep.integrations.transformers.make_task`, which this
    is but for what it refuses. LoRA in its variants, DoRA, IA3, prompt and prefix tuning are batched.

    Args:
        model: the `PeftModel`; or a function that builds one, so that each seed has an adapter, and a base, of its own;
            or a Trainer of one, such as TRL's SFTTrainer, which brings the rest along.
        batches: a DataLoader or other iterable of dicts (or `BatchEncoding`), whose items are the model's arguments.
        optimizer: as in `Task`; None for `AdamW(lr=5e-5, weight_decay=0)`. Groups at other learning rates, as LoRA+ has
            them, keep their ratios.
        val_batches: what members are validated on, in the same form.
        metrics: by name, each `(outputs, batch) -> scalar`, the mean over a batch.

    Returns:
        The task, for every verb.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the adapter is frozen, as one is that was loaded to be used and not to be trained.

    Example:
        `task = make_task(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")), loader)`, then `vs.find_lr(task)`
    """
    adapted: Any = model.model if is_trainer(model) else model  # type: ignore[union-attr]
    if isinstance(adapted, nn.Module):
        _check_adapter(adapted)
    return transformers.make_task(model, batches, optimizer, val_batches, metrics)


def save_adapter(runs: Sweep, i: int, folder: str | os.PathLike[str], **options: Any) -> Path:
    """Write member i's adapter as PEFT does, so that `PeftModel.from_pretrained(base, ...)` reads it.

    Of several adapters that the model holds those that are active are written, as trained ones are.
    The base is neither copied nor written. Of an `Answer`, `answer.model().save_pretrained(folder)` does the
    same.

    Args:
        runs: a sweep of a task from `make_task`.
        i: the member, such as `runs.best()`.
        folder: where; made if it is not there.
        options: those of `PeftModel.save_pretrained`.

    Returns:
        Where the adapter is: the folder, or the one in it that PEFT makes for an adapter that is not named "default".

    Raises:
        IndexError: there is no such member.
        TypeError: the members are no models of PEFT.
        ValueError: the result does not hold weights: that of a range test, or one from a file.

    Example:
        `save_adapter(runs, runs.best("val_loss"), "best")`
    """
    model = runs.model(i)
    if not _is_peft(model):
        raise TypeError(
            f"`runs` must be of models of PEFT; got {type(model).__name__}. `runs.save_model(i, path)` writes the "
            "weights of any model."
        )
    adapted: Any = model
    active = options.setdefault("selected_adapters", list(adapted.active_adapters))
    adapted.save_pretrained(os.fspath(folder), **options)
    return Path(folder) if active[0] == "default" else Path(folder) / active[0]


def _is_peft(model: nn.Module) -> bool:
    return all(hasattr(model, name) for name in ("peft_config", "get_base_model", "save_pretrained"))


def _check_adapter(model: nn.Module) -> None:
    if not _is_peft(model):
        raise TypeError(
            f"`model` must be what `peft.get_peft_model` returns; got {type(model).__name__}. For a model without an "
            "adapter there is `vecsweep.integrations.transformers.make_task`."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "`model` must have an adapter that is trained; got one whose parameters are all frozen. Load it with "
            "`PeftModel.from_pretrained(base, folder, is_trainable=True)`."
        )
