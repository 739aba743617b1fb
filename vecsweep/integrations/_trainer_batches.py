"""What a Trainer of Transformers trains on: the batches of its whole run, in its order, and those it evaluates on.

What each batch weighs in its step is reckoned here, as Trainer does; the loss itself is in `_trainer_loss.py`.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vecsweep._errors import warn_of_fallback
from vecsweep._types import Batch, Batches
from vecsweep.integrations._trainer_loss import COUNT, WEIGHT, is_sft, loss_function_of


class TrainingRun:
    """The batches of a trainer's whole run, in its order, as one pass.

    Each has what Trainer counts in the batches of its step, where the model or the loss divides by that. The losses of
    a step are averaged here and added up in Trainer: each batch of several says what it weighs. A last step of fewer
    batches has some of them twice.

    Args:
        trainer: whose.
        seed: of the order, where it is accelerate's.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self._trainer = trainer
        self._seed = seed
        self._loader, self._is_prepared = _loader_of(trainer, "get_train_dataloader")
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
        """Start over, in the order that accelerate's sampler has in this epoch, or a loader of the trainer's class."""
        if not self._is_prepared:
            if hasattr(self._loader, "set_epoch"):
                self._loader.set_epoch(epoch)
            return islice(self._loader, self._num_batches)  # not asked for more than it has: samplers draw then
        sampler: Any = getattr(self._loader.batch_sampler, "sampler", None)
        parts: tuple[Any, ...] = (sampler, self._loader.batch_sampler, self._loader.dataset)
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        if hasattr(sampler, "initial_seed"):
            sampler.initial_seed = self._seed
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
        said = getattr(self._trainer, "loss_is_scaled_for_ga", None)
        is_sum = is_sum if said is None else said
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
    first = torch.initial_seed() if trainer.args.data_seed is None else trainer.args.data_seed  # as accelerate has it
    TrainingRun(trainer, first)  # raises what there is to raise
    return lambda seed: TrainingRun(trainer, first + seed)


def val_batches_of(trainer: Any) -> Batches | None:
    """What the trainer evaluates on, if it has anything."""
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, dict):
        raise ValueError(  # noqa: TRY004 - a trainer may have them, a task may not
            f"`eval_dataset` must be one data set; got several, {list(trainer.eval_dataset)}. Give the trainer the one "
            "that members are to be judged by."
        )
    loader, _ = _loader_of(trainer, "get_eval_dataloader")

    def counted(given: Batch) -> Batch:
        batch = dict(given)
        count = _count(trainer, [batch])
        return batch if count is None else {**batch, COUNT: count}

    if not isinstance(loader, DataLoader):
        return lambda: map(counted, loader)
    loader = copy.copy(loader)
    collate = loader.collate_fn
    loader.collate_fn = lambda samples: counted(collate(samples))
    return loader


def _count(trainer: Any, batches: Sequence[Batch]) -> Tensor | None:
    """What Trainer counts in the batches of a step, such as tokens with a label; None where it leaves that be."""
    device = next(trainer.model.parameters()).device
    count: Tensor | None = trainer._get_num_items_in_batch(list(batches), device)
    return count


def _loader_of(trainer: Any, name: str) -> tuple[Any, bool]:
    """A loader of the trainer's, without what accelerate has around it to count its passes for all loaders together.

    Also whether accelerate has anything around it, which a loader of the trainer's class may lack.
    """
    known = getattr(trainer.accelerator, "_dataloaders", [])
    num_known = len(known)
    loader = getattr(trainer, name)()
    del known[num_known:]
    return getattr(loader, "base_dataloader", loader), hasattr(loader, "base_dataloader")
