"""The hyperparameters of an optimizer that are numbers, by names of their own."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

BETAS = ("beta1", "beta2")  # the two of `betas`


def plain_options(options: Mapping[str, Any]) -> dict[str, float]:
    """Return what members may have for themselves besides lr: numbers, with `betas` as "beta1" and "beta2".

    Args:
        options: a parameter group of a torch.optim optimizer.

    Example:
        >>> plain_options({"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0, "amsgrad": False})
        {'weight_decay': 0.0, 'beta1': 0.9, 'beta2': 0.999}
    """
    plain = {
        name: float(value)
        for name, value in options.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_VARIED
    }
    betas = options.get("betas")
    if isinstance(betas, tuple | list) and len(betas) == len(BETAS):
        plain |= {name: float(value) for name, value in zip(BETAS, betas, strict=True)}
    return plain


def own_lrs(optimizer: Optimizer) -> list[float]:
    """Return the lr of each parameter group as it was given, `[group]`; 0 where there is none.

    A scheduler that warms up has set it to something else for the moment, and noted what it was.
    """
    return [float(group.get("initial_lr", group.get("lr", 0.0))) for group in optimizer.param_groups]


# lr has a column of its own; a scheduler has left a note of it; and a state is filled with the last, once.
_NOT_VARIED = ("lr", "initial_lr", "initial_accumulator_value")
