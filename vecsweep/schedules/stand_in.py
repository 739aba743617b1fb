"""An optimizer for schedulers to act on, where there is no model.

Not here: what is done with the schedulers (`torch_schedulers.py`).
"""

from typing import Any

import torch
from torch.optim import Optimizer

from vecsweep._hyper import own_lrs

# What schedulers leave in parameter groups; another scheduler, started later, would read it.
_LEFTOVERS = {"initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum"}


class StandIn(Optimizer):
    """An optimizer that has the options of a template, one small parameter for each group, and never moves."""

    def __init__(self, template: Optimizer, lr: float) -> None:
        # A scheduler on the template itself has set lr to something else for the moment, and noted what it was.
        lrs = own_lrs(template)
        if lrs[0] <= 0 and len(lrs) > 1:
            raise ValueError(
                "The lr of the first parameter group must be positive, because the others are trained at their ratio "
                f"to it; got {lrs[0]}. Put a group with a positive lr first."
            )
        left_out = _LEFTOVERS | {"params", "param_names", "lr"}
        groups = [
            {name: value for name, value in group.items() if name not in left_out}
            | {"params": [torch.zeros(1, device="cpu")], "lr": lr * (own / lrs[0]) if index else lr}
            for index, (group, own) in enumerate(zip(template.param_groups, lrs, strict=True))
        ]
        defaults = dict(template.defaults)
        if defaults.get("lr"):  # schedulers of Transformers read it
            defaults["lr"] = lr * (float(defaults["lr"]) / lrs[0]) if lrs[0] else lr
        super().__init__(groups, defaults)

    def step(self, closure: Any = None) -> Any:
        """Do nothing; schedulers ask only that it was called."""


def read_options(group: dict[str, Any]) -> dict[str, float]:
    """The options of a parameter group that are numbers, `betas` as "beta1" and "beta2"."""
    betas = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
    return {
        name: float(value)
        for name, value in (group | betas).items()
        if isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool) and name not in _LEFTOVERS
    }
