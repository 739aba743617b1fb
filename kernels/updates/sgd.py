"""SGD with momentum, Nesterov momentum and dampening, as torch.optim.SGD."""

import torch
from torch import Tensor

from ._update import (
    Hyperparameter,
    State,
    Update,
    add_scaled,
    descent_gradient,
    is_zero,
    per_member,
    zero_steps,
)


def init(
    param: Tensor,  # [member, *shape]
    *,
    momentum: Hyperparameter,  # number or [member]
    dampening: Hyperparameter,  # number or [member]
    **_: object,
) -> State:
    """Return a zero momentum buffer where there is momentum, and a step count where there is dampening."""
    if is_zero(momentum):
        return {}
    state = {"momentum_buffer": torch.zeros_like(param)}
    return state if is_zero(dampening) else state | {"step": zero_steps(param)}


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # {}, or momentum_buffer [member, *shape]; with dampening also step [member]
    *,
    lr: Hyperparameter,  # number or [member]
    momentum: Hyperparameter,  # number or [member]
    dampening: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    nesterov: bool,
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step against the gradient or its running sum.

        g = grad + weight_decay * param
        buffer = momentum * buffer + (1 - dampening) * g    the first buffer is g itself
        param = param - lr * buffer                         nesterov: lr * (g + momentum * buffer)

    As torch.optim.SGD, where a momentum of 0 means no buffer, and then no dampening either. `step`, which
    torch does not keep, tells the first buffer from the others.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """
    grad = descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    if is_zero(momentum):
        return add_scaled(param, grad, -lr), {}

    if is_zero(dampening):
        buffer = add_scaled(grad, state["momentum_buffer"], momentum)
        state = {"momentum_buffer": buffer}
    else:
        damped = state["step"].clamp(max=1)  # 0 at the first update, 1 after
        if isinstance(momentum, Tensor):
            damped = damped * (momentum != 0)
        share = 1 - dampening * damped
        buffer = add_scaled(grad * per_member(share, param), state["momentum_buffer"], momentum)
        state = {"momentum_buffer": buffer, "step": state["step"] + 1}

    direction = add_scaled(grad, buffer, momentum) if nesterov else buffer
    return add_scaled(param, direction, -lr), state


SGD = Update(
    hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
    init=init,
    apply=apply,
    not_in_torch=("step",),
)
