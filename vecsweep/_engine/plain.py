"""The loop that people write, one member after another: what both engines are held against, and nothing of theirs.

It has in common with them how a copy of the caller's model is made, and what is drawn, from which random streams. It
reads the caller's own batches, one at a time, as they come, and hands them to the caller's own loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from vecsweep import _interrupts as interrupts
from vecsweep._engine.caller.casting import cast, place_
from vecsweep._engine.caller.copying import copy_model, forget_, set_to_train
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.loaders import END, next_batch, opened
from vecsweep._engine.data.sources import own_loader
from vecsweep._hyper import own_lrs
from vecsweep._types import Batch, FloatArray
from vecsweep.execution import Execution
from vecsweep.kernels.rules import OpenDraws
from vecsweep.several import as_one
from vecsweep.task import Task

_CAST_TO = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a plain loop leaves.

    Attributes:
        losses: `[step]`, before each update.
        model: as it was after the last.
    """

    losses: FloatArray
    model: nn.Module


class PlainLoop:
    """An ordinary training loop over copies of the caller's model.

    Args:
        task: what is trained; nothing of it is changed.
        execution: device, precision, accumulation and clipping.
        streams: the random streams, borrowed.
        dtype: of parameters, buffers and batches; None leaves them as they are.
    """

    def __init__(self, task: Task, execution: Execution, streams: Streams, dtype: torch.dtype | None) -> None:
        self._task = replace(task, batches=own_loader(task.batches))
        self._execution = execution
        self._streams = streams
        self._dtype = dtype

    def train(self, lr: float, seed: int, num_steps: int) -> Trained:
        """Train one member at a constant learning rate, from the beginning of its seed's random streams.

        What its loss keeps outside the model is set back afterwards, for the next member to begin with.
        """
        task, model, optimizer = self._build(seed)
        with Watch.outside(task, model).undisturbed():
            losses = self._train(task, model, optimizer, lr, seed, num_steps)
        _set_mode(optimizer, "eval")
        return Trained(losses, model)

    def _train(
        self, task: Task, model: nn.Module, optimizer: Optimizer, lr: float, seed: int, num_steps: int
    ) -> FloatArray:
        _set_mode(optimizer, "train")
        _set_lr(optimizer, lr)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        scaler = torch.amp.GradScaler(_device_of(model).type, enabled=self._execution.precision == "fp16")
        batches = self._batches(seed, _device_of(model))
        num_batches = self._execution.accumulation_steps
        self._streams.restart("model", seed)
        losses = []
        for _ in range(num_steps):
            interrupts.check()
            optimizer.zero_grad()
            total = 0.0
            for _ in range(num_batches):
                batch = next(batches)
                self._streams.use("model", seed)
                with self._computing(model):
                    loss = task.loss(model, batch)
                total += float(loss.detach()) / num_batches
                scaler.scale(loss.reshape(()) / num_batches).backward()
            if self._execution.max_grad_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(trained, self._execution.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            losses.append(total)
        return np.array(losses)

    def compute(self, model: nn.Module, seed: int, num_batches: int, *, is_training: bool) -> list[Tensor]:
        """Compute what a trained model makes of the first batches: its outputs, or where there are none its losses.

        Args:
            model: the module; put in eval mode unless `is_training`.
            seed: of the batches, and of what the model draws.
            num_batches: how many.
            is_training: whether the model computes as in training.
        """
        task = self._own_loss(_device_of(model))
        batches = self._batches(seed, _device_of(model))
        if not is_training:
            model.eval()
        computed: list[Tensor] = []
        with Watch.outside(task, model).undisturbed():
            for _ in range(num_batches):
                batch = next(batches)
                self._streams.restart("evaluation", seed)
                with self._computing(model):
                    made = model(batch[0]) if task.training_step is None else task.loss(model, batch)
                leaves = [leaf.detach() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
                computed += [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]
        return computed

    def _build(self, seed: int) -> tuple[Task, nn.Module, Optimizer]:
        """The task with a loss, a model and an optimizer of its own."""
        task = self._task
        template = task.optimizer if isinstance(task.optimizer, Optimizer) else None
        self._streams.restart("weights", seed)
        model, optimizer = copy_model(task.model if isinstance(task.model, nn.Module) else task.model(), template)
        place_(model, self._execution.place, self._dtype)
        set_to_train(model)
        if optimizer is None:
            assert callable(task.optimizer)
            optimizer = as_one(task.optimizer(model.parameters()))
        else:
            forget_(optimizer)
        return self._own_loss(_device_of(model)), model, optimizer

    def _own_loss(self, device: torch.device) -> Task:
        """The task with a copy of its loss, if that is a module: it may hold class weights."""
        if not isinstance(self._task.loss_fn, nn.Module):
            return self._task
        loss_fn, _ = copy_model(self._task.loss_fn)
        place_(loss_fn, device, self._dtype)
        return replace(self._task, loss_fn=loss_fn)

    def _batches(self, seed: int, device: torch.device) -> Iterator[Batch]:
        """The caller's batches as they come, over and over."""
        self._streams.restart("batches", seed)
        while True:
            self._streams.use("batches", seed)
            source = opened(self._task.iterate(seed))
            while True:
                self._streams.use("batches", seed)
                if (batch := next_batch(source)) is END:
                    break
                yield pytree.tree_map(lambda leaf: self._placed(leaf, device), batch)

    def _placed(self, leaf: Any, device: torch.device) -> Any:
        if isinstance(leaf, Tensor):  # a copy, because a loss may write into it
            return cast(leaf.to(device=device, copy=True), self._dtype)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    @contextmanager
    def _computing(self, model: nn.Module) -> Iterator[None]:
        """Autocast, if it is asked for; and what the model draws is drawn as members draw it."""
        precision, device = self._execution.precision, _device_of(model)
        autocast = torch.autocast(device.type, _CAST_TO[precision]) if precision else nullcontext()
        with autocast, OpenDraws() if OpenDraws.matters_on(device) else nullcontext():
            yield


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the lr of the first parameter group, and the others at their ratio to it."""
    own = own_lrs(optimizer)
    for group, before in zip(optimizer.param_groups, own, strict=True):
        group["lr"] = lr * before / own[0] if own[0] > 0 else lr


def _set_mode(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Say which of its weights an optimizer that averages them is to put into the model; others have no modes."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
