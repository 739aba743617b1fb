"""Lightning: a Task from a LightningModule as it stands, and a learning-rate finder in the manner of its Tuner.

Modules of both packages are taken, `lightning` and `pytorch_lightning`. What a module finds in place of a Trainer is in
`_stand_in.py`. Not here: Lightning's loops, callbacks, strategies, and its schedulers, which sweeps have their own of.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from torch import nn

from vecsweep._engine.caller.copying import copy_model
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.sources import length_of
from vecsweep._errors import warn_of_fallback, warn_of_stumble
from vecsweep._types import FloatArray, Method, Seeds
from vecsweep.execution import ExecutionOptions, check_choice
from vecsweep.integrations._lightning import (
    Steps,
    base_of,
    find_attribute,
    has_scheduler,
    load,
    num_batches_of,
    options_of,
    parsing_of,
    read_optimizer,
)
from vecsweep.integrations._stand_in import StandIn, attached
from vecsweep.range_testing import range_test
from vecsweep.results import RangeTest
from vecsweep.suggest import RAMP_SMOOTHING, Rule, smooth, suggest
from vecsweep.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Hooks before and around the loss and the update, with which a Trainer may train otherwise than members do: averages of
# weights are moved in the last two, say.
_HOOKS_LEFT_OUT = (
    "configure_callbacks",
    "backward",
    "configure_gradient_clipping",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_start",
    "optimizer_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_train_batch_end",
)
_BETA = 0.98  # of Lightning's smoothing


def make_task(
    module: nn.Module,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    *,
    datamodule: Any = None,
    metrics: Sequence[str] = (),
) -> Task:
    """Make a Task from a LightningModule; neither it nor its data module is changed, for the task has a copy.

    The loss is what `training_step` returns, a tensor or a dict with "loss". The data module's `prepare_data` and
    `setup("fit")`, the module's own, `configure_model` and `configure_optimizers` are called, in this order, as a
    Trainer would; `on_before_batch_transfer` and `on_after_batch_transfer` at each batch. No other hook is: those of
    each step, and at the start of runs and epochs, are named in a `FallbackWarning`, those at their ends are not.

    Members take steps without a Trainer: `self.log` and `self.print` do nothing, `self.logger` takes anything,
    `self.current_epoch`, `self.global_step` and the `batch_idx` of training are 0, `self.optimizers()` is the template
    (each with a warning where it is read), and what else a module asks of `self.trainer` is an AttributeError.

    The optimizer of `configure_optimizers` is the template. Its scheduler is set aside, with a warning, and what that
    did to the optimizer is undone; pass `schedules` to `sweep` for those to compare.

    "val_loss" is what `validation_step` returns, or else what it logs as "val_loss", or else, as for a module without
    one, the loss of `training_step` in eval mode.

    torchmetrics objects keep count from step to step, which cannot be batched: they answer NaN and measure nothing,
    unless the loss turns out to depend on them, or `metrics` names what is logged of them.

    Args:
        module: a LightningModule with automatic optimization and one optimizer.
        train_dataloaders: a DataLoader or other iterable of batches, or a data module; None for the data module's, or
            the module's own `train_dataloader`.
        val_dataloaders: what members are validated on; None for the data module's, or the module's own, if any.
        datamodule: a LightningDataModule.
        metrics: names under which `validation_step` logs; each becomes a metric `val_<name>`, where "val_" is not
            repeated if the name begins with it: the mean over batches, of a torchmetrics object too. Each takes a pass
            of its own.

    Returns:
        The task, for every verb.

    Raises:
        ImportError: Lightning is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: the module has several optimizers or steps them itself, or there is no data, or more than one
            loader of it.

    Example:
        `task = make_task(module, datamodule=data)`, then `vs.sweep(task, lrs=[1e-3, 1e-2], epochs=3)`
    """
    task, is_scheduled = _make_task(module, train_dataloaders, val_dataloaders, datamodule, metrics)
    if is_scheduled:
        warn_of_stumble(
            f"The scheduler of `configure_optimizers` of {type(module).__name__} is set aside: the learning rate of "
            "members is constant, unless a schedule is passed, as in `schedules=[vs.schedules.from_torch(lambda "
            "optimizer: StepLR(optimizer, 10))]`."
        )
    return task


def _make_task(
    module: nn.Module, train_dataloaders: Any, val_dataloaders: Any, datamodule: Any, metrics: Sequence[str] = ()
) -> tuple[Task, bool]:
    """Make a task as `make_task` does; return also whether a scheduler was set aside."""
    base = base_of(module)
    if hasattr(train_dataloaders, "train_dataloader") and datamodule is None:
        train_dataloaders, datamodule = None, train_dataloaders
    if datamodule is not None and not hasattr(datamodule, "train_dataloader"):
        raise TypeError(f"`datamodule` must be a LightningDataModule; got {type(datamodule).__name__}.")
    if not module.automatic_optimization:
        raise ValueError(
            f"`module` must leave its optimizer to the Trainer; {type(module).__name__} sets "
            "`automatic_optimization = False`. Return the loss from `training_step`, or write the task yourself: "
            "`vs.Task(model, batches, training_step=..., optimizer=...)`."
        )
    if left_out := [name for name in _HOOKS_LEFT_OUT if getattr(type(module), name) is not getattr(base, name)]:
        warn_of_fallback(
            f"Members of a sweep train without {', '.join(f'`{name}`' for name in left_out)} of "
            f"{type(module).__name__}. Clipping and accumulation are options of the sweep."
        )
    with Streams(torch.device("cpu")).borrowed():  # data modules split their data at random
        owned: Any = copy_model(module)[0]
        data = copy.copy(datamodule)
        trainer = StandIn(type(module).__name__, data)
        with attached(owned, trainer, {}):
            batches, val_batches = load(owned, base, trainer, train_dataloaders, val_dataloaders)
            with trainer.planning(num_batches_of(batches)):
                configured = owned.configure_optimizers()
                optimizer = read_optimizer(configured)
    trainer.take(optimizer, is_scheduled=has_scheduler(configured))
    kind: type[Any] = type(module)
    has_validation = kind.validation_step is not base.validation_step
    if metrics and not has_validation:
        raise ValueError(f"`metrics` needs a `validation_step` that logs them; {type(module).__name__} has none.")
    steps = Steps(trainer, base, has_validation=has_validation)
    task = Task(
        owned,
        batches,
        optimizer=optimizer,
        training_step=steps.loss,
        val_batches=val_batches if has_validation or val_dataloaders is not None else None,
        metrics={name.removeprefix("val_"): steps.metric(name) for name in metrics},
    )
    return task, has_scheduler(configured)


def lr_find(
    module: nn.Module,
    train_dataloaders: Any = None,
    *,
    datamodule: Any = None,
    trainer: Any = None,
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    num_training: int = 100,
    mode: Literal["exponential", "linear"] = "exponential",
    early_stop_threshold: float | None = 4.0,
    update_attr: bool = False,
    attr_name: str = "",
    method: Method = "ramp",
    num_lrs: int | None = None,
    seeds: Seeds = 1,
    **execution: Unpack[ExecutionOptions],
) -> "FoundLr":
    """Find a learning rate for a LightningModule as `Tuner(trainer).lr_find` does, several seeds at once if asked.

    What differs from Lightning 2.6: both ends are tried (it leaves out the second of its learning rates:
    `min_lr * (max_lr / min_lr) ** ((step + 1) / num_training)` from the second step on); losses are the raw ones (it
    keeps averages, the first of which is half of the first loss); a member ends where 16 of these in a row are too
    high, not at one average; batches start over when they run out, instead of ending the test after `max_epochs`;
    parameter groups keep the ratios of their learning rates; no checkpoint is written, and the module keeps its
    learning rate unless `update_attr` is True, which is Lightning's default.

    Args:
        module: as in `make_task`.
        train_dataloaders: likewise.
        datamodule: likewise.
        trainer: a Trainer, of which gradient accumulation, clipping by norm and mixed precision are taken; None for
            none of them. Options in `execution` come first.
        min_lr: the smallest learning rate.
        max_lr: the largest.
        num_training: updates of each member: of a ramp, one for each learning rate.
        mode: "exponential" for equal ratios between learning rates, "linear" for equal differences.
        early_stop_threshold: the option `divergence_factor` of `Execution`, by Lightning's name: how far above its
            start a member's losses must stay for it to end. None for never, unless a loss is not finite.
        update_attr: whether to set the learning rate of `module` to the suggestion.
        attr_name: of that attribute, in the module or its `hparams`; "" for `lr` or `learning_rate`.
        method: "ramp", as Lightning's, or "grid", a member for each learning rate.
        num_lrs: of a grid.
        seeds: how many seeds, or the seeds themselves.
        **execution: options of every verb; see `vecsweep.Execution`.

    Returns:
        The learning rates tested and their losses, `[lr]`, and the suggestion.

    Raises:
        ImportError: Lightning is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or `module` cannot be trained so.
        AttributeError: `update_attr` is given, and there is no such attribute.

    Example:
        `lr_find(module, datamodule=data, seeds=8).suggestion()`
    """
    check_choice("mode", mode, ("exponential", "linear"))
    base = base_of(module)
    name = find_attribute(module, base, attr_name) if update_attr else ""
    options: ExecutionOptions = {"divergence_factor": early_stop_threshold}
    options = options | options_of(trainer) | execution
    task = _make_task(module, train_dataloaders, None, datamodule)[0]
    num_batches, num_of_step = length_of(task.batches), options.get("accumulation_steps", 1)
    if num_batches and num_batches % num_of_step:
        warn_of_fallback(
            f"The last {num_batches % num_of_step} of the {num_batches} batches of a pass are accumulated with the "
            "first of the next; Lightning ends a step with them."
        )
    found = range_test(
        task,
        start_lr=min_lr,
        end_lr=max_lr,
        num_lrs=num_lrs,
        num_steps=num_training,
        seeds=seeds,
        method=method,
        spacing=mode,
        **options,
    )
    answer = FoundLr(found)
    if update_attr:
        parsing_of(base).lightning_setattr(module, name, answer.suggestion())
    return answer


@dataclass(frozen=True, slots=True)
class FoundLr:
    """What `lr_find` found, by the names of Lightning's finder.

    Attributes:
        found: the range test itself, which can be saved, and asked for suggestions of other rules.
    """

    found: RangeTest

    @property
    def results(self) -> dict[str, list[float]]:
        """The learning rates, "lr", and the losses, "loss": raw, averaged over seeds, NaN from a divergence on."""
        return {"lr": self.found.lrs.tolist(), "loss": self.found.scores.tolist()}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1, *, rule: str | Rule | None = None) -> float:
        """Read a learning rate off the curve without its ends.

        Lightning takes the steepest slope of its averages against the learning rate itself. On a logarithmic range that
        prefers small learning rates, where the differences that it divides by are small; the rules here take slopes
        against its logarithm. `rule="lightning"` gives Lightning's number for these losses, to compare.

        Args:
            skip_begin: points to leave out at the beginning.
            skip_end: points to leave out at the end.
            rule: a name in `vecsweep.suggest.RULES`, a function `(lrs, losses) -> lr`, or "lightning"; None is
                "steepest" for a ramp and "basin" for a grid.

        Raises:
            ValueError: fewer than two losses remain that are finite; Lightning returns None then.
        """
        lrs, losses = self.found.lrs, self.found.scores
        is_ramp = self.found.method == "ramp"
        if rule is None:
            rule = "steepest" if is_ramp else "basin"
        curve = smooth_as_lightning(losses) if rule == "lightning" else smooth(losses, RAMP_SMOOTHING * is_ramp)
        kept = slice(skip_begin, max(0, len(lrs) - skip_end))
        lrs, curve = lrs[kept], curve[kept]
        num_finite = int(np.isfinite(curve).sum())
        if num_finite < 2:
            raise ValueError(
                f"A suggestion needs at least two finite losses; got {num_finite} of {len(self.found.lrs)}, with "
                f"`skip_begin` {skip_begin} and `skip_end` {skip_end}. Skip fewer, or raise `num_training`."
            )
        return suggest(lrs, curve, _steepest_in_lr if rule == "lightning" else rule).lr

    def plot(self, suggest: bool = True, ax: "Axes | None" = None) -> "Axes":
        """Draw the loss against the learning rate.

        Args:
            suggest: whether to mark `suggestion()`, beside those of the range test.
            ax: where to draw; None makes a figure.

        Returns:
            The axes; Lightning returns their figure.
        """
        ax = self.found.plot(ax)
        if suggest:
            lr = self.suggestion()
            ax.axvline(lr, color="black", linestyle=":", label=f"suggestion() {lr:.3g}")
            ax.legend(fontsize="small", framealpha=0.9)
        return ax


def smooth_as_lightning(losses: FloatArray) -> FloatArray:
    """Average losses as Lightning's finder does: exponentially, with a debiasing that is one step ahead.

    `average / (1 - 0.98**(step + 2))`, steps counted from 0, so that the first average is 0.505 times the first loss.

    Args:
        losses: `[step]`; NaN from a divergence on.

    Returns:
        The smoothed losses, of the same shape.
    """
    steps = np.arange(len(losses))
    return smooth(losses, _BETA) * (1 - _BETA ** (steps + 1)) / (1 - _BETA ** (steps + 2))


def _steepest_in_lr(lrs: FloatArray, losses: FloatArray) -> float:
    """Where the slope against the learning rate itself, by central differences, is lowest."""
    return float(lrs[np.argmin(np.gradient(losses, lrs))])
