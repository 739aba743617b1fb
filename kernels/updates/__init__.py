"""Optimizer formulas on stacked tensors, one file each, by the torch.optim class whose behaviour each has.

Here are pure functions of `[member, *shape]` tensors, to be traced or compiled. Not here: parameter groups,
schedules, clipping and freezing, which are the engine's; complex parameters and sparse gradients, which no
formula takes.

Example:
    >>> import torch
    >>> from vecsweep.kernels.updates import UPDATES
    >>> sgd = UPDATES[torch.optim.SGD]
    >>> template = torch.optim.SGD([torch.zeros(2)], momentum=0.9)
    >>> hyper = {name: template.param_groups[0][name] for name in sgd.hyperparameters}
    >>> hyper["lr"] = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)  # [member]
    >>> param, grad = torch.ones(3, 2), torch.ones(3, 2)  # [member, *shape]
    >>> param, state = sgd.apply(param, grad, sgd.init(param, **hyper), **hyper)
    >>> param[:, 0]
    tensor([0.5000, 0.7500, 1.0000])
"""

import torch

from ._update import Fused, State, Update, formulas_only, over_members, per_member
from .adadelta import ADADELTA
from .adagrad import ADAGRAD
from .adam import ADAM
from .adamax import ADAMAX
from .nadam import NADAM
from .radam import RADAM
from .rmsprop import RMSPROP
from .sgd import SGD

__all__ = ["FUSED", "UPDATES", "Fused", "State", "Update", "formulas_only", "over_members", "per_member"]

# Keyed by exact class: a subclass may step differently.
UPDATES: dict[type[torch.optim.Optimizer], Update] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.NAdam: NADAM,
    torch.optim.RAdam: RADAM,
    torch.optim.Adamax: ADAMAX,
    torch.optim.Adagrad: ADAGRAD,
    torch.optim.Adadelta: ADADELTA,
    torch.optim.RMSprop: RMSPROP,
}

# By the operators that they are in a trace.
FUSED: dict[object, Fused] = {u.fused.operator: u.fused for u in UPDATES.values() if u.fused is not None}
