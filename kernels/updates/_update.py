"""What an update is, and the few steps that several formulas share.

A per-member hyperparameter is cast to the parameter's dtype only where it meets the parameter; until then all
arithmetic on it is in float64, as torch.optim's is in Python floats. No function here changes its arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Hyperparameter = float | Tensor  # one for all members, or float64 [member]


@dataclass(frozen=True, slots=True)
class Fused:
    """A kernel of torch's that steps all parameters of a member at once, called for one member after another."""

    operator: Any
    """What it is in a trace: as `step_`, but it returns what that writes to, and leaves the old as it is."""
    step_: Callable[..., None]
    """Steps in place."""
    written: tuple[int, ...]
    """Which arguments of `step_` are lists of tensors that it writes to."""
    suits: Callable[..., bool]
    """From (params, grads) to whether it takes such, and is faster than the formula."""
    apply_all: Callable[..., tuple[list[Tensor], list[State]]]
    """From (params, grads, states, is_stepped, **hyperparameters) to the new params and states; pure."""


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer formula on stacked tensors.

    The keys of a state are those of torch.optim, so that members can pass from one to the other and back.
    `init` and `apply` take the hyperparameters by name. A number among them may be a float, the same for all
    members, or a float64 tensor `[member]`; only tensors stay variable when `apply` is traced. `apply` is
    pure, and expects to be called where gradients are not recorded.
    """

    hyperparameters: tuple[str, ...]
    """Keys read from a torch.optim parameter group, besides "params"."""
    init: Callable[..., State]
    """From (param, **hyperparameters) to the state before the first update."""
    apply: Callable[..., tuple[Tensor, State]]
    """From (param, grad, state, **hyperparameters) to the new param and the new state."""
    counters: tuple[str, ...] = ("step",)
    """Keys of the state that are one number a member; all others have the shape of the parameter."""
    fused: Fused | None = None
    """The same by a kernel, where there is one."""
    not_in_torch: tuple[str, ...] = ()
    """Counters that torch.optim does not keep: to it, a parameter that was stepped is one that has a state."""

    def kernel_for(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Fused | None:
        """The kernel that steps these parameters, each `[member, *shape]`; None where the formula does."""
        if self.fused is None or not params or _FORMULAS_ONLY.get():
            return None
        return self.fused if self.fused.suits(params, grads) else None


_FORMULAS_ONLY = ContextVar("formulas_only", default=False)


@contextmanager
def formulas_only() -> Iterator[None]:
    """Leave kernels aside: a compiler fuses the operators of a formula, and takes none of a kernel apart."""
    token = _FORMULAS_ONLY.set(True)
    try:
        yield
    finally:
        _FORMULAS_ONLY.reset(token)


def is_zero(
    value: Hyperparameter,  # number or [member]
) -> bool:
    """Tell whether a term may be left out; a tensor's value is unknown while tracing, so its term stays."""
    return not isinstance(value, Tensor) and value == 0


def over_members(
    value: Tensor,  # [member]
    param: Tensor,  # [member, *shape]
) -> Tensor:
    """Reshape to `[member, 1, ...]`, to be broadcast over one member's shape."""
    return value.reshape(-1, *[1] * (param.ndim - 1))


def per_member(
    value: Hyperparameter,  # number or [member]
    param: Tensor,  # [member, *shape]
) -> Hyperparameter:
    """Make a per-member number ready to meet `param`: its dtype, and one value per member; a float stays."""
    return over_members(value.to(param.dtype), param) if isinstance(value, Tensor) else value


def add_scaled(
    base: Tensor,  # [member, *shape]
    other: Tensor,  # [member, *shape]
    scale: Hyperparameter,  # number or [member]
) -> Tensor:
    """Return base + scale * other, in one pass."""
    if isinstance(scale, Tensor):
        return torch.addcmul(base, other, over_members(scale.to(base.dtype), base))
    return torch.add(base, other, alpha=scale)


def ema(
    average: Tensor,  # [member, *shape]
    value: Tensor,  # [member, *shape]
    decay: Hyperparameter,  # number or [member]
) -> Tensor:
    """Return decay * average + (1 - decay) * value."""
    return torch.lerp(average, value, per_member(1 - decay, average))


def ema_of_square(
    average: Tensor,  # [member, *shape]
    value: Tensor,  # [member, *shape]
    decay: Hyperparameter,  # number or [member]
) -> Tensor:
    """Return decay * average + (1 - decay) * value**2.

    Not a lerp: where value**2 overflows, torch.optim's average is inf, and a lerp's would be inf - inf.
    """
    decayed = average * per_member(decay, average)
    if isinstance(decay, Tensor):
        return torch.addcmul(decayed, value * per_member(1 - decay, value), value)
    return torch.addcmul(decayed, value, value, value=1 - decay)


def descent_gradient(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    *,
    weight_decay: Hyperparameter,  # number or [member]
    maximize: bool,
) -> Tensor:
    """Return the gradient to descend: negated to maximize, plus weight_decay * param (an L2 penalty)."""
    grad = -grad if maximize else grad
    return grad if is_zero(weight_decay) else add_scaled(grad, param, weight_decay)


def decay_weights(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    decoupled: bool,
    maximize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the param to step from and the gradient to descend.

    Decoupled, the decay shrinks the parameter by 1 - lr * weight_decay and leaves the gradient alone; else it
    is an L2 penalty in the gradient.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019.
    """
    if not decoupled:
        return param, descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    if not is_zero(weight_decay):
        param = param * per_member(1 - lr * weight_decay, param)
    return param, -grad if maximize else grad


def zero_steps(
    param: Tensor,  # [member, *shape]
) -> Tensor:
    """Return a count of no updates for each member: float64 `[member]`, on the device of `param`."""
    return torch.zeros(param.shape[0], dtype=torch.float64, device=param.device)
