"""How the learning rates of a range test rise: as formulas, and as torch schedulers for programs that want those."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Formula = Callable[[float, float, float], float]  # (base_lr, end_lr, progress) -> lr


def _exponential(base_lr: float, end_lr: float, progress: float) -> float:
    return base_lr * (end_lr / base_lr) ** progress


def _linear(base_lr: float, end_lr: float, progress: float) -> float:
    return base_lr + progress * (end_lr - base_lr)


FORMULAS: dict[str, Formula] = {"exp": _exponential, "linear": _linear}


def find_mode(step_mode: Any) -> str:
    """Return the name of a formula, in whatever case it is written."""
    if not isinstance(step_mode, str) or step_mode.lower() not in FORMULAS:
        raise ValueError(f"expected one of (exp, linear), got {step_mode}. Pass one of them as `step_mode`.")
    return step_mode.lower()


def draw_ramps(
    base_lrs: list[float],  # [group]
    end_lr: float,
    num_iter: int,
    mode: str,
) -> list[list[float]]:
    """Return the learning rates of each step, `[step, group]`: every group goes from its own base to the common end.

    Args:
        base_lrs: where groups begin.
        end_lr: where they end.
        num_iter: steps.
        mode: a name in `FORMULAS`.

    Raises:
        ValueError: an lr is not finite, or of the wrong sign, or there are fewer than two steps.

    Example:
        >>> draw_ramps([1.0, 2.0], 4.0, 3, "linear")
        [[1.0, 2.0], [2.5, 3.0], [4.0, 4.0]]
    """
    _check_num_iter(num_iter)
    is_exponential = mode == "exp"
    named = [("start_lr", lr) for lr in base_lrs] + [("end_lr", end_lr)]
    for name, lr in named:
        if not math.isfinite(lr) or lr < 0 or (is_exponential and lr == 0):
            rule = "positive and finite" if is_exponential else "at least 0 and finite"
            where = ", which is the optimizer's own lr where none is given," if name == "start_lr" else ""
            remedy = "No ratio leads to or from 0: pass 1e-7, say." if lr == 0 else "Pass a rate such as 1e-7 or 10."
            raise ValueError(f"`{name}`{where} must be {rule}; got {lr}. {remedy}")
    formula = FORMULAS[mode]
    steps = [step / (num_iter - 1) for step in range(num_iter)]
    return [[formula(base_lr, end_lr, progress) for base_lr in base_lrs] for progress in steps]


def _check_num_iter(num_iter: int) -> None:
    if num_iter <= 1:
        raise ValueError(f"`num_iter` must be larger than 1, for both ends; got {num_iter}. Pass 100, say.")


class _RampLR(LRScheduler):
    """A scheduler that goes from the optimizer's lr to another in a number of steps."""

    _mode: str

    def __init__(self, optimizer: Optimizer, end_lr: float, num_iter: int, last_epoch: int = -1) -> None:
        _check_num_iter(num_iter)
        self.end_lr = end_lr
        self.num_iter = num_iter
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each group at the current step."""
        progress = self.last_epoch / (self.num_iter - 1)
        return [FORMULAS[self._mode](float(base_lr), self.end_lr, progress) for base_lr in self.base_lrs]


class LinearLR(_RampLR):
    """Raise the learning rate in a line: `base_lr + (end_lr - base_lr) * step / (num_iter - 1)`.

    Args:
        optimizer: whose learning rates rise.
        end_lr: where they end.
        num_iter: steps, both ends among them.
        last_epoch: as in torch's schedulers.

    Raises:
        ValueError: there are fewer than two steps.
    """

    _mode = "linear"


class ExponentialLR(_RampLR):
    """Raise the learning rate in equal ratios: `base_lr * (end_lr / base_lr) ** (step / (num_iter - 1))`.

    Args:
        optimizer: whose learning rates rise.
        end_lr: where they end.
        num_iter: steps, both ends among them.
        last_epoch: as in torch's schedulers.

    Raises:
        ValueError: there are fewer than two steps.
    """

    _mode = "exp"
