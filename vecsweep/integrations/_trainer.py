"""What a Trainer of Transformers would train, as far as a Task needs it: its model, batches, optimizer and schedule.

Also TRL's SFTTrainer. Of Transformers nothing is imported but what the trainer is made of. A trainer is read and not
run: nothing of it is changed. Not here: its loss (`_trainer_loss.py`).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch, Batches, Precision
from vecsweep.integrations._trainer_loss import COUNT, WEIGHT, is_sft, loss_function_of, owner_of
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

    Each has what Trainer counts in the batches of its step, where the model or the loss divides by that. The losses of
    a step are averaged here and added up in Trainer: each batch of several says what it weighs. A last step of fewer
    batches has some of them twice.

    Args:
        trainer: whose.
        seed: 0 for the order that the trainer has; others for others.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self._trainer = trainer
        self._seed = seed
        self._loader = _loader_of(trainer, "get_train_dataloader")
        self._accumulated: int = trainer.args.gradient_accumulation_steps
        self._num_batches = _length_of(self._loader)
        if self._num_batches is None and trainer.args.max_steps <= 0:
            raise ValueError(
                f"`max_steps` must be given for a data set without a length; got {trainer.args.max_steps}. Give the "
                "trainer's arguments the number of its updates."
            )
        if (self._num_batches or 0) % self._accumulated and any(map(_is_moved_by_batches, trainer.model.modules())):
            raise ValueError(
                f"`gradient_accumulation_steps` must divide the {self._num_batches} batches of an epoch where a model "
                f"keeps statistics of its batches; got {self._accumulated}. Choose another, or leave some data out."
            )

    @property
    def num_steps(self) -> int:
        """How many updates the trainer takes."""
        args: Any = self._trainer.args
        if self._num_batches is None or args.max_steps > 0:
            return int(args.max_steps)
        return math.ceil(args.num_train_epochs * math.ceil(self._num_batches / self._accumulated))

    def __len__(self) -> int:
        return self.num_steps * self._accumulated

    def __iter__(self) -> Iterator[Batch]:
        num_left, epoch, is_over = self.num_steps, 0, False
        while num_left and not is_over:
            is_over = True  # unless the epoch has any step
            batches = map(dict, self._epoch(epoch))
            for group in iter(lambda: list(islice(batches, self._accumulated)), []):  # noqa: B023
                if len(group) < self._accumulated and self._num_batches is None:
                    warn_of_fallback(
                        f"The last {len(group)} batches of a pass, fewer than `gradient_accumulation_steps`, are left "
                        "out; Trainer adds their gradients to those of the next pass's first step."
                    )
                    break
                yield from self._weighed(group)
                is_over, num_left = False, num_left - 1
                if num_left == 0:
                    break
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

    def _weighed(self, group: Sequence[Batch]) -> Iterator[Batch]:
        """The batches of a step, with what Trainer counts in them, and what the loss of each weighs in their mean."""
        count, num = _count(self._trainer, group), self._accumulated
        # TRL divides what it adds to the losses of tokens by the number of batches; Trainer adds up all there is.
        is_mean = is_sft(self._trainer) and loss_function_of(self._trainer) is None
        is_sum = self._trainer.compute_loss_func is not None
        own: dict[str, Tensor] = {}
        if count is not None:
            own[COUNT] = count / len(group) if is_mean else count
            is_sum |= self._trainer.model_accepts_loss_kwargs
        if num == 1:
            yield {**group[0], **own}
            return
        whole = num if is_sum and not is_mean else num / len(group)
        for i in range(num):  # a batch that comes twice weighs half each time
            first = i % len(group)
            weight = torch.tensor(whole / len(range(first, num, len(group))), dtype=torch.float64)
            yield {**group[first], **own, WEIGHT: weight}


def _length_of(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _is_moved_by_batches(module: nn.Module) -> bool:
    return bool(getattr(module, "track_running_stats", False))


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
