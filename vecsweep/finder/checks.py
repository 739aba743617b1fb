"""What LRFinder accepts, checked at the call. The kinds of errors are torch-lr-finder's, wherever it has one."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vecsweep._engine.members.templates import needs_closure


def check_objects(model: Any, optimizer: Any, criterion: Any) -> None:
    """Raise TypeError or ValueError unless these three can be trained with."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module; got {type(model).__name__}. Pass an instance.")
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"`optimizer` must be a torch.optim optimizer; got {type(optimizer).__name__}. The order is model, "
            "optimizer, criterion."
        )
    if not callable(criterion) or isinstance(criterion, type):
        raise TypeError(
            "`criterion` must be a function `(outputs, labels) -> loss`, or an instance such as "
            f"`nn.CrossEntropyLoss()`; got {criterion!r:.60}."
        )
    if next(model.parameters(), None) is None:
        raise ValueError("`model` must have parameters to train; got none.")
    if needs_closure(optimizer):
        raise TypeError(
            f"`optimizer` must take a step without a closure; {type(optimizer).__name__} needs one. Use a first-order "
            "optimizer, such as SGD or AdamW."
        )


def check_amp(backend: str | None, config: dict[str, Any], grad_scaler: Any) -> None:
    """Raise ValueError or TypeError unless this is mixed precision as `torch.amp` has it."""
    if not backend:
        return
    if backend == "apex":
        raise ValueError(
            'Unknown amp backend: apex. It is no longer developed; `amp_backend` must be "torch". Pass "torch", '
            "which casts as apex did at its level O1."
        )
    if backend != "torch":
        raise ValueError(
            f'Unknown amp backend: {backend}. `amp_backend` must be "torch" or None. Pass "torch" for `torch.amp`.'
        )
    if grad_scaler is None:
        raise ValueError(
            "`grad_scaler` is required when using `torch.amp`; got None. Pass `torch.amp.GradScaler()`; for bfloat16, "
            "which needs no scaling, `torch.amp.GradScaler(enabled=False)`."
        )
    known = list(inspect.signature(torch.amp.autocast).parameters)
    for name in config:
        if name not in known:
            raise TypeError(f"`amp_config` must hold keywords of `torch.amp.autocast`, {known}; got {name!r}.")


def check_loader(name: str, loader: Any, kind: type) -> None:
    """Raise ValueError unless this is a DataLoader or a `kind`."""
    if not isinstance(loader, DataLoader | kind):
        raise ValueError(  # noqa: TRY004 - as torch-lr-finder does
            f"`{name}` has unsupported type: {type(loader)}. It must be a DataLoader or a {kind.__name__}. Wrap it: "
            f"{kind.__name__}(loader)."
        )


def check_smoothing(smooth_f: float, diverge_th: float) -> None:
    """Raise ValueError unless these are a weight and a multiple."""
    if not 0 <= smooth_f < 1:
        raise ValueError(f"smooth_f is outside the range [0, 1[; got {smooth_f}. Pass 0 for no smoothing.")
    if math.isnan(diverge_th) or diverge_th < 1:
        raise ValueError(
            f"`diverge_th` must be at least 1, for the first loss is the best so far; got {diverge_th}. Pass 5, or "
            "float('inf') to go on to the end."
        )


def check_loss(loss: Any) -> None:
    """Raise TypeError or ValueError unless a criterion gave one number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"`criterion` must return a tensor; got {type(loss).__name__}. Return the loss itself.")
    if loss.numel() != 1:
        raise ValueError(
            f"`criterion` must return one number; got a tensor of shape {tuple(loss.shape)}. Average it: `.mean()`, or "
            '`reduction="mean"`.'
        )
