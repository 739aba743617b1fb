"""The same range test for several seeds, in one batched pass of vecsweep's engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vecsweep._engine.data.sources import own_loader
from vecsweep._types import Batch, FloatArray, Precision, Seeds
from vecsweep.answer import find_lr
from vecsweep.finder.loaders import DataLoaderIter, Pair, pair_of
from vecsweep.results import Answer
from vecsweep.schedules import exponential, linear
from vecsweep.sweeps import sweep
from vecsweep.task import Task


class Pairs:
    """A loader as the engine reads it: anew for each seed, as pairs (inputs, labels).

    Args:
        loader: a DataLoader, or one with a conversion of its own.
    """

    def __init__(self, loader: Any) -> None:
        self._convert: Callable[[Batch], Pair] = pair_of
        if isinstance(loader, DataLoaderIter):
            self._convert, loader = loader.inputs_labels_from_batch, loader.data_loader
        self._loader = loader = own_loader(loader)
        # Where the engine looks for the loader's own random generators.
        self.generator = getattr(loader, "generator", None)
        self.sampler = getattr(loader, "sampler", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None)

    def __iter__(self) -> Iterator[Pair]:
        return (self._convert(batch) for batch in self._loader)

    def __len__(self) -> int:
        return len(self._loader)


@dataclass(frozen=True, slots=True)
class SeedRequest:
    """What is trained with several seeds.

    Attributes:
        model: the caller's, which is copied.
        optimizer: likewise; its groups have one lr.
        criterion: `(outputs, labels) -> scalar`.
        loaders: of training, and of validation or None.
        base_lrs: where the groups begin.
        end_lr: where they end.
        num_iter: steps.
        mode: "exp" or "linear".
        seeds: how many, or which.
        accumulation_steps: batches in each step.
        device: where members train.
        autocast: keywords of an autocast; None for none.
        is_restoring: what the caller asked for.

    Raises:
        ValueError: something is asked for that only a test on the model itself has.
    """

    model: nn.Module
    optimizer: Optimizer
    criterion: Callable[[Any, Any], Any]
    loaders: tuple[Any, Any]
    base_lrs: list[float]
    end_lr: float
    num_iter: int
    mode: str
    seeds: Seeds
    accumulation_steps: int
    device: torch.device
    autocast: dict[str, Any] | None
    is_restoring: bool

    def __post_init__(self) -> None:
        if not self.is_restoring:
            raise ValueError("With `seeds`, which train copies, `restore` must be True; got False. Leave it out.")
        if len(set(self.base_lrs)) > 1:
            raise ValueError(
                f"With `seeds`, all parameter groups must begin at one lr; got {self.base_lrs}. Pass one number as "
                "`start_lr`."
            )
        if self.base_lrs[0] == 0:
            raise ValueError("With `seeds`, `start_lr` must be positive; got 0. Pass 1e-7, say.")


def train_seeds(request: SeedRequest) -> tuple[list[int], FloatArray, FloatArray]:
    """Train a member for each seed.

    Returns:
        The seeds; the learning rates `[step]`; the losses `[step, seed]`, neither smoothed nor cut off, of the training
        batch before each update, or on the validation batches after it.
    """
    start_lr, ratio = request.base_lrs[0], request.end_lr / request.base_lrs[0]
    train, val = (None if loader is None else Pairs(loader) for loader in request.loaders)
    assert train is not None
    task = Task(request.model, train, request.criterion, optimizer=request.optimizer, val_batches=val)
    runs = sweep(
        task,
        lrs=[start_lr],
        schedules={"ramp": exponential(1, ratio) if request.mode == "exp" else linear(1, ratio)},
        seeds=request.seeds,
        num_steps=request.num_iter,
        val_every=None if val is None else 1,
        divergence_factor=None,  # the finder's own rule ends the mean curve
        accumulation_steps=request.accumulation_steps,
        device=request.device,
        precision=None if request.autocast is None else find_precision(request.autocast),
    )
    losses = runs.train_loss if val is None else runs.metrics["val_loss"]
    return [member.seed for member in runs.members], runs.lr[:, 0], losses


def find_answer(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Callable[[Any, Any], Any],
    loaders: tuple[Any, Any],
    device: torch.device | None,
    options: dict[str, Any],
) -> Answer:
    """Race copies of a finder's model; the loaders are for training and, if any, validation."""
    train, val = (None if loader is None else Pairs(loader) for loader in loaders)
    assert train is not None
    task = Task(model, train, criterion, optimizer=optimizer, val_batches=val)
    return find_lr(task, **({"device": device} | options))


def find_precision(autocast: dict[str, Any]) -> Precision | None:
    """Return the precision that the keywords of an autocast ask for; None for the model's own.

    Raises:
        ValueError: the engine does not have it.

    Example:
        >>> find_precision({"device_type": "cpu", "dtype": torch.bfloat16})
        'bf16'
    """
    if not autocast.get("enabled", True):
        return None
    dtype = autocast.get("dtype") or torch.get_autocast_dtype(torch.device(autocast["device_type"]).type)
    names: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    if dtype not in names:
        raise ValueError(f"With `seeds`, `amp_config` must ask for bfloat16 or float16; got {dtype}.")
    return names[dtype]
