"""Torch's own schedulers as schedules: each member runs the real scheduler, on a stand-in for its optimizer.

Not here: functions of progress (`schedule.py`), and feeding a metric to ReduceLROnPlateau, which training does.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vecsweep._types import FloatArray
from vecsweep.schedules.lengths import look_at_length
from vecsweep.schedules.stand_in import StandIn, read_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = Literal["epoch", "step"]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

_RATIO_TOLERANCE = 1e-6  # of a group's lr, in units of the largest it had
_ROUNDING = 1e-9  # of epochs, so that step 30 of 0.1 epochs each begins epoch 3


@dataclass(frozen=True, slots=True)
class TorchSchedule:
    """A scheduler of torch, built anew for each member.

    Attributes:
        factory: from an optimizer to a scheduler on it. The optimizer is a stand-in that holds the options and the
            parameter groups of the task's, with the member's learning rate.
        interval: when the scheduler steps: after each "epoch" or each "step".
        metric: the metric that a ReduceLROnPlateau is fed; None for "val_loss", and for other schedulers.

    Example:
        >>> import torch
        >>> from vecsweep.schedules import TorchSchedule
        >>> TorchSchedule(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)).interval
        'epoch'
    """

    factory: SchedulerFactory
    interval: Interval = "epoch"
    metric: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise TypeError(
                f"`factory` must be a function from an optimizer to a scheduler; got {self.factory!r}. Pass, say, "
                "`lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`."
            )
        if self.interval not in ("epoch", "step"):
            raise ValueError(
                f"`interval` must be 'epoch' or 'step'; got {self.interval!r}. Pass 'step' for a scheduler whose "
                "lengths are in steps."
            )
        if self.metric is not None and not isinstance(self.metric, str):
            raise TypeError(f"`metric` must be the name of a metric; got {self.metric!r}. Pass 'val_loss', say.")

    def start(self, template: Optimizer, lr: float) -> "RunningScheduler":
        """Build the scheduler of a member.

        Args:
            template: the task's optimizer, which is read only.
            lr: the member's learning rate: of the first parameter group; the others keep their ratios to it.

        Raises:
            TypeError: `template` is no optimizer, or `factory` returned no scheduler.
            ValueError: `lr` is not positive and finite; the scheduler is not on the optimizer that `factory` was
                given; `metric` or `interval` do not suit it; or it sets what a member cannot follow.
        """
        if not isinstance(template, Optimizer):
            raise TypeError(f"`template` must be an optimizer; got {template!r}. Pass `torch.optim.SGD(...)`, say.")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"`lr` must be positive and finite; got {lr}. Pass a learning rate, such as 0.1.")
        return RunningScheduler(self, template, lr)

    def rows(self, template: Optimizer, lr: float, num_steps: int, steps_per_epoch: float) -> dict[str, FloatArray]:
        """Return what a member trains with at each step of a run, for schedulers that need no metric.

        An epoch ends where the next one's first step is the first at or after a multiple of `steps_per_epoch`.

        Args:
            template: the task's optimizer, which is read only.
            lr: the member's learning rate.
            num_steps: of the run.
            steps_per_epoch: of the run; need not be whole.

        Returns:
            "lr" and, if the scheduler changes it, "momentum" or "beta1"; each `[step]`.

        Raises:
            TypeError: As in `start`.
            ValueError: As in `start`; the scheduler needs a metric; or it ends before the run.

        Example:
            >>> import torch
            >>> from vecsweep.schedules import from_torch
            >>> template = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            >>> halving = from_torch(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
            >>> halving.rows(template, lr=0.1, num_steps=6, steps_per_epoch=2)["lr"]
            array([0.1  , 0.1  , 0.05 , 0.05 , 0.025, 0.025])
        """
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1; got {num_steps}. Pass the length of the run.")
        if not (math.isfinite(steps_per_epoch) and steps_per_epoch > 0):
            raise ValueError(
                f"`steps_per_epoch` must be positive and finite; got {steps_per_epoch}. Pass the number of batches."
            )
        running = self.start(template, lr)
        if running.is_fed:
            raise ValueError(
                f"{running.name} must be fed a metric while members train; its learning rates cannot be told in "
                "advance. Call `start`, and `step(metric)` after each epoch."
            )
        if self.interval == "epoch":
            look_at_length(running._scheduler, num_steps, math.ceil(num_steps / steps_per_epoch - _ROUNDING))
        seen = list[dict[str, float]]()
        for step in range(num_steps):
            due = step if self.interval == "step" else math.floor(step / steps_per_epoch + _ROUNDING)
            while running.num_steps < due:
                try:
                    running._advance()
                except ValueError as error:
                    raise ValueError(
                        f"{running.name} must last as long as the run; it ended after {step} of the {num_steps} steps "
                        f"({error}). Give it the length of the run: {num_steps} with `interval='step'`, "
                        f"{math.ceil(num_steps / steps_per_epoch - _ROUNDING)} with `interval='epoch'`."
                    ) from error
                running._read()
            seen.append(running._current)
        names = running.hyper()
        return {name: np.array([current[name] for current in seen]) for name in names}

    def plot(
        self, ax: "Axes | None" = None, *, num_steps: int = 100, steps_per_epoch: float = 1.0, lr: float = 1.0
    ) -> "Axes":
        """Draw the learning rate against the step, and momentum if the scheduler anneals it.

        Args:
            ax: where to draw; None makes a figure.
            num_steps: of the run.
            steps_per_epoch: of the run.
            lr: the member's learning rate.

        Raises:
            ValueError: the scheduler needs a metric, or ends before the run.
        """
        from vecsweep.plot import plot_rows

        template = torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)
        return plot_rows(self.rows(template, lr, num_steps, steps_per_epoch), ax, title=self.start(template, lr).name)


class RunningScheduler:
    """A scheduler at work for one member.

    Args:
        schedule: what is run.
        template: the task's optimizer.
        lr: the member's learning rate.

    Attributes:
        is_fed: whether it is a ReduceLROnPlateau, whose `step` needs a metric.
        metric: the name of that metric; None if it is not fed.
        name: of the scheduler's class.
        num_steps: how often it stepped.

    Example:
        >>> import torch
        >>> from vecsweep.schedules import RunningScheduler
        >>> from vecsweep.schedules import TorchSchedule
        >>> template = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> halving = TorchSchedule(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
        >>> RunningScheduler(halving, template, lr=0.8).hyper()
        {'lr': 0.8}
    """

    def __init__(self, schedule: TorchSchedule, template: Optimizer, lr: float) -> None:
        self._optimizer = StandIn(template, lr)
        self._before = [read_options(group) for group in self._optimizer.param_groups]
        self._scheduler = schedule.factory(self._optimizer)
        self.name = type(self._scheduler).__name__
        self.is_fed = isinstance(self._scheduler, ReduceLROnPlateau)
        self.metric = (schedule.metric or "val_loss") if self.is_fed else None
        self.num_steps = 0
        self._check(schedule)
        self._largest = [before["lr"] for before in self._before]
        self._is_momentum_changed = False
        self._current = dict[str, float]()
        self._read()

    def hyper(self) -> dict[str, float]:
        """Return "lr" of the first parameter group and, once the scheduler changed it, "momentum" or "beta1"."""
        return {name: value for name, value in self._current.items() if name == "lr" or self._is_momentum_changed}

    def step(self, metric: float | None = None) -> None:
        """Step the scheduler, after an update or an epoch.

        Args:
            metric: what a ReduceLROnPlateau is fed; None for other schedulers.

        Raises:
            ValueError: A metric is missing or not wanted, or the scheduler sets what a member cannot follow.
        """
        if self.is_fed and metric is None:
            raise ValueError(f"{self.name} must be fed a metric; got none. Pass this epoch's `{self.metric}`.")
        if not self.is_fed and metric is not None:
            raise ValueError(f"{self.name} takes no metric; got {metric}. Call `step()`.")
        self._advance(metric)
        self._read()

    def _check(self, schedule: TorchSchedule) -> None:
        example = "`lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`"
        if not isinstance(self._scheduler, LRScheduler | ReduceLROnPlateau):
            raise TypeError(
                f"`factory` must return a scheduler of torch.optim.lr_scheduler; it returned {self._scheduler!r}. "
                f"Pass, say, {example}."
            )
        if getattr(self._scheduler, "optimizer", self._optimizer) is not self._optimizer:
            raise ValueError(
                f"`factory` must build its scheduler on the optimizer that it is given; {self.name} is on another. "
                f"Pass, say, {example}."
            )
        if schedule.metric is not None and not self.is_fed:
            raise ValueError(
                f"`metric` must be None but for ReduceLROnPlateau; got {schedule.metric!r} for {self.name}. Leave it "
                "out."
            )
        if self.is_fed and schedule.interval == "step":
            raise ValueError(
                f"`interval` must be 'epoch' for {self.name}, because metrics are those of epochs; got 'step'. Leave "
                "it out."
            )

    def _advance(self, metric: float | None = None) -> None:
        self._optimizer.step()  # before the scheduler, or torch warns
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert metric is not None
            self._scheduler.step(metric)
        else:
            self._scheduler.step()
        self.num_steps += 1

    def _read(self) -> None:
        """Read what the scheduler set, and check that a member can follow it."""
        now = [read_options(group) for group in self._optimizer.param_groups]
        for group, (before, after) in enumerate(zip(self._before, now, strict=True)):
            self._check_lr(group, after["lr"], now[0]["lr"])
            changed = {name for name in before if before[name] != after[name]} - {"lr"}
            for name in sorted(changed - {"momentum", "beta1"}):
                raise ValueError(
                    f"Schedulers may change lr, and momentum or beta1; {self.name} changed `{name}` of group {group} "
                    f"from {before[name]} to {after[name]}. Leave `{name}` alone."
                )
            for name in sorted(changed):
                if any(other[name] != before[name] for other in self._before) or after[name] != now[0].get(name):
                    raise ValueError(
                        f"Schedulers that change {name} must find and leave it the same in all parameter groups; "
                        f"{self.name} changed that of group {group} from {before[name]} to {after[name]}. Pass it "
                        "`cycle_momentum=False`, or give all groups one value."
                    )
            self._is_momentum_changed |= bool(changed)
        kept = ("lr", "beta1" if "beta1" in now[0] else "momentum")
        self._current = {name: now[0][name] for name in kept if name in now[0]}

    def _check_lr(self, group: int, lr: float, first_lr: float) -> None:
        when = f"after {self.num_steps} of its steps"
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(
                f"Schedulers must give finite learning rates of at least 0; {self.name} gave group {group} {lr} "
                f"{when}. Check its options."
            )
        self._largest[group] = max(self._largest[group], lr)
        ratio = self._before[group]["lr"] / self._before[0]["lr"]
        if abs(lr - ratio * first_lr) > _RATIO_TOLERANCE * self._largest[group]:
            raise ValueError(
                f"Schedulers must change the lr of all parameter groups in one ratio; {self.name} gave group {group} "
                f"{lr:.6g} {when}, where {ratio:.6g} times the first group's {first_lr:.6g} is {ratio * first_lr:.6g}. "
                "Give it an lr for each group, as in `max_lr=[group['lr'] for group in optimizer.param_groups]`, and "
                "no lower limit but 0."
            )


def from_torch(factory: SchedulerFactory, interval: Interval = "epoch", metric: str | None = None) -> TorchSchedule:
    """Make a schedule of a scheduler of torch.

    Each member runs the real scheduler, on an optimizer that has the member's learning rate but no model. Schedulers
    that replace the learning rate, as OneCycleLR does, train all members alike, unless they read it:
    `max_lr=optimizer.param_groups[0]["lr"]`. What they do to momentum, or to beta1, is followed too.

    Args:
        factory: from an optimizer to a scheduler on it.
        interval: when it steps: after each "epoch", or each "step".
        metric: what a ReduceLROnPlateau is fed after each epoch; None is "val_loss".

    Returns:
        The schedule, which runs the scheduler on a stand-in for the optimizer.

    Raises:
        TypeError: `factory` is not callable, or `metric` no name.
        ValueError: There is no such interval.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import OneCycleLR
        >>> from vecsweep.schedules import from_torch
        >>> schedule = from_torch(
        ...     lambda optimizer: OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=100),
        ...     interval="step",
        ... )
        >>> template = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        >>> rows = schedule.rows(template, lr=0.1, num_steps=100, steps_per_epoch=20)
        >>> float(rows["lr"].max()), sorted(rows)
        (0.1, ['lr', 'momentum'])

    Reference:
        torch.optim.lr_scheduler, https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
    """
    return TorchSchedule(factory, interval, metric)


def plateau(metric: str = "val_loss", **options: Any) -> TorchSchedule:
    """Reduce each member's learning rate where its own metric has stopped improving.

    Args:
        metric: what is watched; with `mode="max"` for one that should grow, such as an accuracy.
        options: of torch.optim.lr_scheduler.ReduceLROnPlateau, such as `factor=0.1` and `patience=10`.

    Returns:
        The schedule, which follows what each member measures.

    Raises:
        TypeError: ReduceLROnPlateau has no such option, or `metric` is no name.
        ValueError: ReduceLROnPlateau does not take that value.

    Example:
        >>> import torch
        >>> from vecsweep.schedules import plateau
        >>> template = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> running = plateau(factor=0.5, patience=0).start(template, lr=0.1)
        >>> for val_loss in [1.0, 0.9, 0.9]:
        ...     running.step(val_loss)
        >>> running.hyper()
        {'lr': 0.05}

    Reference:
        torch.optim.lr_scheduler.ReduceLROnPlateau
    """
    known = [name for name in inspect.signature(ReduceLROnPlateau).parameters if name != "optimizer"]
    for name in options:
        if name not in known:
            raise TypeError(f"`options` must be of ReduceLROnPlateau; got `{name}`. Pass some of {', '.join(known)}.")
    schedule = TorchSchedule(functools.partial(ReduceLROnPlateau, **options), "epoch", metric)
    limits = options.get("min_lr")
    num_groups = len(limits) if isinstance(limits, list | tuple) else 1
    groups = [{"params": [torch.zeros(1, device="cpu")]} for _ in range(num_groups)]
    try:
        schedule.factory(torch.optim.SGD(groups, lr=1.0))
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise type(error)(f"`options` must suit ReduceLROnPlateau; got {given}. It says: {error}") from error
    return schedule
