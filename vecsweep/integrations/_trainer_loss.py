"""The loss of a Trainer of Transformers: the model's own, a function that it was given, or one of smoothed labels.

Of TRL's SFTTrainer it is the model's own. What a class of trainers does otherwise is named here, and not done.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch, TrainingStep

COUNT = "num_items_in_batch"  # as Trainer calls it
WEIGHT = "vecsweep_weight"  # of a batch's loss in the mean of its step

# What a Trainer may have been given to train otherwise than members do.
_METHODS_LEFT_OUT = (
    "training_step",
    "get_batch_samples",
    "_prepare_inputs",
    "compute_loss_context_manager",
    "_clip_grad_norm",
    "_run_epoch",
    "_inner_training_loop",
)
_EVENTS_LEFT_OUT = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_epoch_end",
)


def loss_function_of(trainer: Any) -> Callable[..., Tensor] | None:
    """What computes the trainer's loss, `(outputs, labels, num_items_in_batch=None)`; None for the model itself.

    Raises:
        ValueError: it is the trainer's class's own, or one of TRL's others.
    """
    is_of_trl = type(trainer).__module__.startswith("trl.")  # whose online trainers compute it in their steps
    for name in ("compute_loss", "training_step") if is_of_trl else ("compute_loss",):
        if owner_of(trainer, name) is not None:
            raise ValueError(
                f"`trainer` must compute its loss as Trainer does; {type(trainer).__name__} has a `{name}` of its own, "
                "which may keep things in the trainer. Write it as a step of one model: `vs.Task(trainer.model, "
                "batches, training_step=lambda model, batch: ..., optimizer=...)`."
            )
    loss_type = getattr(trainer.args, "loss_type", None) or "nll"
    if is_sft(trainer) and loss_type != "nll":
        raise ValueError(
            "`trainer` must train on the model's own loss, or on a `compute_loss_func`; got `loss_type` "
            f"{loss_type!r}. Write it as a `compute_loss_func`."
        )
    if trainer.compute_loss_func is not None:
        given: Callable[..., Tensor] = trainer.compute_loss_func
        return given
    return None if trainer.label_smoother is None else _smoothed(trainer)


def _smoothed(trainer: Any) -> Callable[..., Tensor]:
    """The loss with smoothed labels, which of a causal language model are a token ahead."""
    smoother = trainer.label_smoother
    takes_count = COUNT in inspect.signature(smoother).parameters  # since Transformers 5.15
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    causal: Any = sys.modules["transformers.models.auto.modeling_auto"].MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_shifted = is_sft(trainer) or type(model).__name__ in causal.values()

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        count = {COUNT: num_items_in_batch} if takes_count else {}
        smoothed: Tensor = smoother(outputs, labels, shift_labels=is_shifted, **count)
        return smoothed

    return loss


def weighed(step: TrainingStep) -> TrainingStep:
    """A step whose loss counts for what its batch weighs."""

    def weighed_step(model: nn.Module, batch: Batch) -> Tensor:
        weight = batch.get(WEIGHT)
        if weight is None:
            return step(model, batch)
        loss = step(model, {name: value for name, value in batch.items() if name != WEIGHT})
        return loss * weight.to(loss.dtype)

    return weighed_step


def check_training(trainer: Any) -> None:
    """Name what a trainer does in its run that members do without.

    Raises:
        ValueError: it adds noise to embeddings.
    """
    if trainer.neftune_noise_alpha is not None:
        raise ValueError(
            "`trainer` must train without `neftune_noise_alpha`, a hook that it puts into the model for its run; got "
            f"{trainer.neftune_noise_alpha}. Leave it out, or put such a hook into the model yourself."
        )
    left_out = [name for name in _METHODS_LEFT_OUT if owner_of(trainer, name) is not None]
    for names, owner in ((left_out, type(trainer).__name__), *_events_left_out(trainer)):
        if names:
            warn_of_fallback(
                f"Members of a sweep train without {', '.join(f'`{name}`' for name in names)} of {owner}. Where that "
                "changes what is trained, write a step of one model: `vs.Task(trainer.model, batches, "
                "training_step=lambda model, batch: ..., optimizer=...)`."
            )


def _events_left_out(trainer: Any) -> Iterator[tuple[list[str], str]]:
    """What the trainer's callbacks do as it trains, but for the libraries' own, which report; with their class."""
    base: Any = sys.modules["transformers"].TrainerCallback
    for kind in map(type, trainer.callback_handler.callbacks):
        if kind.__module__.partition(".")[0] not in ("transformers", "sentence_transformers"):
            names = [name for name in _EVENTS_LEFT_OUT if getattr(kind, name, None) is not getattr(base, name, None)]
            yield names, kind.__name__


def owner_of(trainer: Any, name: str) -> str | None:
    """The class that has exchanged a method of Trainer for its own; None if it is Trainer's, or SFTTrainer's."""
    owner = next((kind for kind in type(trainer).__mro__ if name in vars(kind)), None)
    if owner is None or owner is sys.modules["transformers"].Trainer or owner in _sft_classes(trainer):
        return None
    return owner.__name__


def is_sft(trainer: Any) -> bool:
    return bool(_sft_classes(trainer))


def _sft_classes(trainer: Any) -> tuple[type[Any], ...]:
    """TRL's SFTTrainer and what it is derived from, if the trainer is one."""
    kinds = type(trainer).__mro__
    is_it = (kind.__name__ == "SFTTrainer" and kind.__module__.startswith("trl.") for kind in kinds)
    return next((kind.__mro__ for kind, it in zip(kinds, is_it, strict=True) if it), ())
