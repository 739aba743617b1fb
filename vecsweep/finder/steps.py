"""One step of a range test on the caller's own objects: an update, or an evaluation."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep.finder.checks import check_loss
from vecsweep.finder.loaders import Pair, TrainDataLoaderIter, ValDataLoaderIter, count_samples


class Steps:
    """Updates and evaluations, in methods that subclasses override under the names they have in torch-lr-finder."""

    model: nn.Module
    optimizer: Optimizer
    criterion: Callable[[Any, Any], Tensor]
    device: torch.device
    amp_backend: str | None
    amp_config: dict[str, Any]
    grad_scaler: Any

    def _train_batch(
        self, train_iter: TrainDataLoaderIter, accumulation_steps: int, non_blocking_transfer: bool = True
    ) -> float:
        """Take one update, and return the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        is_amp = self.amp_backend is not None
        total: Tensor | None = None
        for _ in range(accumulation_steps):
            inputs, labels = self._move_to_device(*next(train_iter), non_blocking=non_blocking_transfer)
            with torch.amp.autocast(**self.amp_config) if is_amp else nullcontext():
                loss = self.criterion(self.model(inputs), labels)
            check_loss(loss)
            loss = loss / accumulation_steps
            (self.grad_scaler.scale(loss) if is_amp else loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        if is_amp:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        assert total is not None
        return float(total.item())

    @torch.no_grad()
    def _validate(self, val_iter: ValDataLoaderIter, non_blocking_transfer: bool = True) -> float:
        """Return the mean loss on the validation batches, in eval mode, each by the number of its samples."""
        self.model.eval()
        total, num_samples = 0.0, 0
        for pair in val_iter:
            inputs, labels = self._move_to_device(*pair, non_blocking=non_blocking_transfer)
            loss = self.criterion(self.model(inputs), labels)
            check_loss(loss)
            size = count_samples(labels)
            total += loss.item() * size
            num_samples += size
        if num_samples == 0:
            raise ValueError(
                "`val_loader` must yield at least one sample each time it is read; got none. Look at the length of the "
                "data set, and at `drop_last` when a batch is larger than it."
            )
        return total / num_samples

    def _move_to_device(self, inputs: Any, labels: Any, non_blocking: bool = True) -> Pair:
        """Copy what has a `to` to the device, also inside tuples, lists and dicts."""
        return _move(inputs, self.device, non_blocking), _move(labels, self.device, non_blocking)


def _move(part: Any, device: torch.device, non_blocking: bool) -> Any:
    if hasattr(part, "to"):
        return part.to(device, non_blocking=non_blocking)
    if isinstance(part, dict):
        return {key: _move(own, device, non_blocking) for key, own in part.items()}
    if isinstance(part, list | tuple):
        moved = [_move(own, device, non_blocking) for own in part]
        if isinstance(part, list):
            return moved
        return type(part)(*moved) if hasattr(part, "_fields") else tuple(moved)
    return part
