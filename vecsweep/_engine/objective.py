"""Objective: one member's loss as a module, into which other parameters can be put."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vecsweep._types import Batch, Precision
from vecsweep.task import Task

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """The loss of one batch as a module, so that `functional_call` can put other parameters into the model.

    Args:
        task: whose loss.
        model: the module that is trained.
        precision: of autocast; None for none.
    """

    PREFIX = "model."  # of the model's parameters and buffers among the objective's

    def __init__(self, task: Task, model: nn.Module, precision: Precision | None) -> None:
        super().__init__()
        self.model = model
        self._task = task
        self._precision = precision

    def forward(self, batch: Batch) -> Tensor:
        """Compute the loss of one batch: a scalar."""
        device = next(self.model.parameters()).device
        if self._precision is None:
            return self._scalar(self._task.loss(self.model, batch))
        # The cache of casted weights would outlive the tensors of a traced step.
        with torch.autocast(device.type, AUTOCAST_DTYPES[self._precision], cache_enabled=False):
            return self._scalar(self._task.loss(self.model, batch))

    def evaluate(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the loss with other parameters and buffers; `tensors` afterwards holds what the pass made of them.

        Args:
            tensors: parameters and buffers by their names in the model.
            batch: one batch.
        """
        prefixed = {self.PREFIX + name: tensor for name, tensor in tensors.items()}
        loss = functional_call(self, prefixed, (batch,))
        tensors.update({name: prefixed[self.PREFIX + name] for name in tensors})
        return loss

    @staticmethod
    def _scalar(loss: Any) -> Tensor:
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"The loss must be a scalar tensor; got {type(loss).__name__}. Return the tensor itself, not "
                "`loss.item()` or a tuple."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"The loss must be a scalar; got shape {tuple(loss.shape)}. Reduce it, for example by `.mean()`."
            )
        return loss.reshape(())
