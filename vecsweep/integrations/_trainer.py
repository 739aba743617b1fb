"""What a Trainer of Transformers would train, as far as a Task needs it: its model, batches, loss, optimizer, schedule.

Also TRL's SFTTrainer, whose loss is the model's own. Of Transformers nothing is imported but what the trainer is made
of. A trainer is read and not run: nothing of it is changed.
"""

import copy
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from vecsweep._types import Batch, Batches, Precision, TrainingStep
from vecsweep.schedules import from_torch
from vecsweep.schedules.torch_schedulers import TorchSchedule

COUNT = "num_items_in_batch"  # as Trainer calls it


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
    """The trainer's model; where TRL has exchanged a `forward`, modules around the same parameters that have their own.

    TRL's computes the same loss, but from whichever model it was put into, also in copies of it.
    """
    model: nn.Module = trainer.model
    if not any(map(_is_exchanged, model.modules())):
        return model
    own: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, own)
    for module in filter(_is_exchanged, copied.modules()):
        del module.forward
    return copied


def _is_exchanged(module: nn.Module) -> bool:
    function = getattr(vars(module).get("forward"), "__func__", None)
    # Where it was written, not its `__module__`, which is that of what it stands for.
    return str(getattr(function, "__globals__", {}).get("__name__")).startswith("trl.")


class TrainingRun:
    """The batches of a trainer's whole run, in its order, as one pass.

    Each has what Trainer counts in the batches of its step: the model divides by that, and not by the mean.

    Args:
        trainer: whose.
        seed: 0 for the order that the trainer has; others for others.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self._trainer = trainer
        self._seed = seed
        self._loader = _loader_of(trainer, "get_train_dataloader")
        self._accumulated = trainer.args.gradient_accumulation_steps
        if len(self._loader) % self._accumulated:
            raise ValueError(
                f"`gradient_accumulation_steps` must divide the {len(self._loader)} batches of an epoch; got "
                f"{self._accumulated}, which leaves a smaller step at its end. Choose another, or leave some data out."
            )

    @property
    def num_steps(self) -> int:
        """How many updates the trainer takes."""
        args, of_epoch = self._trainer.args, len(self._loader) // self._accumulated
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * of_epoch)

    def __len__(self) -> int:
        return self.num_steps * self._accumulated

    def __iter__(self) -> Iterator[Batch]:
        num_left, epoch = len(self), 0
        while num_left > 0:
            group: list[Batch] = []
            for batch in self._epoch(epoch):
                group.append(dict(batch))
                if len(group) == self._accumulated:
                    yield from self._counted(group)
                    num_left -= len(group)
                    group = []
                if num_left == 0:
                    return
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """Start over, in the order that accelerate's sampler has in this epoch."""
        sampler: Any = getattr(self._loader.batch_sampler, "sampler", None)
        parts: tuple[Any, ...] = (sampler, self._loader.batch_sampler, self._loader.dataset)
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        if hasattr(sampler, "initial_seed"):
            args: Any = self._trainer.args
            sampler.initial_seed = (args.seed if args.data_seed is None else args.data_seed) + self._seed
        return iter(self._loader)

    def _counted(self, group: Sequence[Batch]) -> Iterator[Batch]:
        """The batches of a step; their losses are averaged here, and added up in Trainer."""
        count = _count(self._trainer, group)
        return (batch if count is None else {**batch, COUNT: count / len(group)} for batch in group)


def batches_of(trainer: Any) -> Batches:
    """What the trainer trains on, its whole run as one pass; for each seed in an order of its own."""
    TrainingRun(trainer, 0)  # raises what there is to raise
    return lambda seed: TrainingRun(trainer, seed)


def val_batches_of(trainer: Any) -> Batches | None:
    """What the trainer evaluates on, if it has anything."""
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, dict):
        raise ValueError(  # noqa: TRY004 - a trainer may have them, a task may not
            f"`eval_dataset` must be one data set; got several, {list(trainer.eval_dataset)}. Give the trainer the one "
            "that members are to be judged by."
        )
    loader = copy.copy(_loader_of(trainer, "get_eval_dataloader"))
    collate = loader.collate_fn

    def counted(samples: Any) -> Batch:
        batch = dict(collate(samples))
        count = _count(trainer, [batch])
        return batch if count is None else {**batch, COUNT: count}

    loader.collate_fn = counted
    return loader


def _count(trainer: Any, batches: Sequence[Batch]) -> Tensor | None:
    """What Trainer counts in the batches of a step, such as tokens with a label; None where it leaves that be."""
    device = next(trainer.model.parameters()).device
    count: Tensor | None = trainer._get_num_items_in_batch(list(batches), device)
    return count


def _loader_of(trainer: Any, name: str) -> DataLoader[Any]:
    """A loader of the trainer's, without what accelerate has around it to count its passes for all loaders together."""
    known = getattr(trainer.accelerator, "_dataloaders", [])
    num_known = len(known)
    loader = getattr(trainer, name)()
    del known[num_known:]
    return getattr(loader, "base_dataloader", loader)


def optimizer_of(trainer: Any) -> Optimizer:
    """The optimizer that the trainer would make, or has been given; a template."""
    if trainer.optimizer is not None:
        given: Optimizer = getattr(
            trainer.optimizer, "optimizer", trainer.optimizer
        )  # in accelerate's wrapper, after a run
        return given
    made: Optimizer = copy.copy(trainer).create_optimizer()  # which keeps it in the trainer
    return made


def step_of(trainer: Any) -> TrainingStep | None:
    """What computes the trainer's loss where it is not the model's own.

    Raises:
        ValueError: it is the trainer's class's own, or smoothed.
    """
    kind = type(trainer)
    base = sys.modules["transformers"].Trainer
    is_sft = any(c.__name__ == "SFTTrainer" and c.__module__.startswith("trl.") for c in kind.__mro__)
    owner = next(c for c in kind.__mro__ if "compute_loss" in vars(c))
    if owner is not base and not (is_sft and owner.__module__.startswith("trl.")):
        raise ValueError(
            f"`trainer` must compute its loss as Trainer does; {owner.__name__} has a `compute_loss` of its own, which "
            "may keep things in the trainer. Write it as a step of one model: `vs.Task(trainer.model, batches, "
            "training_step=lambda model, batch: ..., optimizer=...)`."
        )
    loss_type = getattr(trainer.args, "loss_type", None) or "nll"
    if trainer.label_smoother is not None or (is_sft and loss_type != "nll"):
        what = "label smoothing" if trainer.label_smoother is not None else f"`loss_type` {loss_type!r}"
        raise ValueError(
            f"`trainer` must train on the model's own loss, or on a `compute_loss_func`; got {what}. Write it as a "
            "`compute_loss_func`."
        )
    return None if trainer.compute_loss_func is None else _OwnLoss(trainer.compute_loss_func)


class _OwnLoss:
    """The loss by a trainer's `compute_loss_func`."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", COUNT)}
        loss: Tensor = self._function(model(**inputs), batch.get("labels"), num_items_in_batch=batch.get(COUNT))
        return loss


def options_of(trainer: Any) -> TrainerOptions:
    """Read the options of a verb off a Trainer: `vs.sweep(make_task(trainer), lrs=[...], **options_of(trainer))`.

    Args:
        trainer: of Transformers, or TRL's SFTTrainer.

    Returns:
        `num_steps`, `schedules`, `accumulation_steps`, `max_grad_norm` and `precision`, as its arguments have them.

    Raises:
        ValueError: it has a scheduler of its own, which is bound to its optimizer.
    """
    args: Any = trainer.args
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        raise ValueError(
            f"`trainer` must make its scheduler by itself; got a {type(trainer.lr_scheduler).__name__} over its "
            "optimizer. Pass it as `schedules`: `[vs.schedules.from_torch(lambda optimizer: ..., interval='step')]`."
        )
    num_steps = TrainingRun(trainer, 0).num_steps
    get_scheduler = sys.modules["transformers"].get_scheduler

    def scheduler(optimizer: Optimizer) -> Any:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )

    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return {
        "num_steps": num_steps,
        "schedules": {name: from_torch(scheduler, interval="step")},
        "accumulation_steps": args.gradient_accumulation_steps,
        "max_grad_norm": args.max_grad_norm or None,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else None,
    }
