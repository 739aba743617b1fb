"""What a Trainer of Transformers would train, as far as a Task needs it: its model, optimizer and schedule.

Also TRL's SFTTrainer. Of Transformers nothing is imported but what the trainer is made of. A trainer is read and not
run: nothing of it is changed. Not here: its batches (`_trainer_batches.py`) and its loss (`_trainer_loss.py`).
"""

import copy
import sys
from typing import Any, TypedDict

from torch import nn
from torch.optim import Optimizer

from vecsweep._engine.caller.copying import copy_optimizer
from vecsweep._errors import warn_of_fallback, warn_of_stumble
from vecsweep._types import Precision
from vecsweep.integrations._trainer_batches import TrainingRun
from vecsweep.integrations._trainer_loss import owner_of
from vecsweep.schedules import from_torch
from vecsweep.schedules.torch_schedulers import TorchSchedule


class TrainerOptions(TypedDict, total=False):
    """What a Trainer is told that is an option of a verb."""

    num_steps: int
    schedules: dict[str, TorchSchedule]
    accumulation_steps: int
    max_grad_norm: float | None
    precision: Precision | None


def is_trainer(value: Any) -> bool:
    """Whether this has what is read of a Trainer."""
    names = ("model", "args", "get_train_dataloader", "create_optimizer")
    return not isinstance(value, nn.Module) and all(hasattr(value, name) for name in names)


def model_of(trainer: Any) -> nn.Module:
    """The trainer's model as it trains it; where that is not as it stands, modules around the same parameters.

    As a run begins, its config is given the special tokens of the tokenizer, by which some models find the end of a
    text. And where TRL has exchanged a `forward`, modules have their own: TRL's computes the same loss, but from
    whichever model it was put into, also in copies of it.
    """
    model: nn.Module = trainer.model
    is_aligned = _has_tokens_of(model, trainer.processing_class)
    if is_aligned and not any(map(_is_exchanged, model.modules())):
        return model
    own: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, own)
    for module in filter(_is_exchanged, copied.modules()):
        del module.forward
    if not is_aligned:
        sys.modules["transformers.trainer_utils"].align_special_tokens(copied, trainer.processing_class)
    return copied


def _has_tokens_of(model: Any, processing: Any) -> bool:
    """Whether a model's config names the special tokens that its tokenizer has."""
    tokenizer = getattr(processing, "tokenizer", processing)
    if not hasattr(model, "config") or not hasattr(sys.modules["transformers.trainer_utils"], "align_special_tokens"):
        return True  # before Transformers 5 a method, which changes the trainer's own model
    config = model.config.get_text_config()
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    return all(getattr(tokenizer, name, None) in (None, getattr(config, name, None)) for name in names)


def _is_exchanged(module: nn.Module) -> bool:
    function = getattr(vars(module).get("forward"), "__func__", None)
    # Where it was written, not its `__module__`, which is that of what it stands for.
    return str(getattr(function, "__globals__", {}).get("__name__")).startswith("trl.")


def optimizer_of(trainer: Any) -> Optimizer:
    """The optimizer that the trainer would make, or has been given; a template."""
    optimizer: Optimizer = _make_optimizer(trainer) if trainer.optimizer is None else trainer.optimizer
    if hasattr(optimizer, "optimizer"):  # in accelerate's wrapper, with a scheduler: there has been a run
        optimizer = copy_optimizer(optimizer.optimizer, {id(p): p for p in trainer.model.parameters()})
        for group in optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, p in trainer.model.named_parameters() if p.requires_grad and id(p) not in held]
    if left and trainer.args.max_grad_norm:
        warn_of_fallback(
            f"Gradients of a sweep are clipped by the norm of those that the optimizer steps; Trainer counts in "
            f"{len(left)} parameters that it leaves alone, such as `{left[0]}`. Give them `requires_grad_(False)`."
        )
    return optimizer


def _make_optimizer(trainer: Any) -> Optimizer:
    """The optimizer that the trainer would make.

    Raises:
        ValueError: it would hook into the model.
    """
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if name.endswith(("lomo", "_layerwise")):
        raise ValueError(
            f"`optim` must be one that steps after the backward pass; got {name!r}, which steps within it, by hooks "
            "that it puts onto the model's parameters. Choose another."
        )
    made: Optimizer = copy.copy(trainer).create_optimizer()  # which keeps it in the trainer
    lr = trainer.args.learning_rate
    lrs = [float(group["lr"]) for group in made.param_groups]
    if len(set(lrs)) > 1 and lrs[0] != lr:
        warn_of_stumble(
            f"The learning rates of a sweep are those of the first of {len(lrs)} parameter groups, which "
            f"{type(trainer).__name__} gives {lrs[0]:.6g} at the `learning_rate` {lr:.6g}; the others keep their ratio "
            "to it."
        )
    return made


def options_of(trainer: Any) -> TrainerOptions:
    """Read the options of a verb off a Trainer: `vs.sweep(make_task(trainer), lrs=[...], **options_of(trainer))`.

    Args:
        trainer: of Transformers, or TRL's SFTTrainer.

    Returns:
        `num_steps`, `schedules`, `accumulation_steps`, `max_grad_norm` and `precision`, as its arguments have them.

    Raises:
        ValueError: it has a scheduler of its own, which is bound to its optimizer, or one that is fed a metric; or
            there is no telling how many updates it takes.
    """
    args: Any = trainer.args
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        raise ValueError(
            f"`trainer` must make its scheduler by itself; got a {type(trainer.lr_scheduler).__name__} over its "
            "optimizer. Pass it as `schedules`: `[vs.schedules.from_torch(lambda optimizer: ..., interval='step')]`."
        )
    num_steps = TrainingRun(trainer, 0).num_steps
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if name in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"`lr_scheduler_type` must be one that needs no metric; got {name!r}, which is fed by the trainer's own "
            "evaluations. Choose another."
        )

    def scheduler(optimizer: Optimizer) -> Any:
        own = copy.copy(trainer)  # which keeps what it makes
        own.optimizer, own.lr_scheduler = optimizer, None
        own.create_scheduler(num_steps, optimizer=optimizer)
        return own.lr_scheduler

    if owner_of(trainer, "create_scheduler") is not None:
        name = type(trainer).__name__
    return {
        "num_steps": num_steps,
        "schedules": {name: from_torch(scheduler, interval="step")},
        "accumulation_steps": args.gradient_accumulation_steps,
        "max_grad_norm": args.max_grad_norm or None,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else None,
    }
