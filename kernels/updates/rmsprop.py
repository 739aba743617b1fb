"""RMSprop, plain, centered and with momentum, as torch.optim.RMSprop."""

import torch
from torch import Tensor

from ._update import (
    Hyperparameter,
    State,
    Update,
    add_scaled,
    descent_gradient,
    ema,
    ema_of_square,
    is_zero,
    per_member,
    zero_steps,
)


def init(
    param: Tensor,  # [member, *shape]
    *,
    momentum: Hyperparameter,  # number or [member]
    centered: bool,
    **_: object,
) -> State:
    """Return zero averages, and a zero momentum buffer where there is momentum."""
    state = {"step": zero_steps(param), "square_avg": torch.zeros_like(param)}
    if centered:
        state["grad_avg"] = torch.zeros_like(param)
    if not is_zero(momentum):
        state["momentum_buffer"] = torch.zeros_like(param)
    return state


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; square_avg; centered: grad_avg; with momentum: momentum_buffer; [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    alpha: Hyperparameter,  # number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    momentum: Hyperparameter,  # number or [member]
    centered: bool,
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step along the gradient over its root mean square or, centered, over its standard deviation.

        g = grad + weight_decay * param
        v = alpha * v + (1 - alpha) * g**2                  square_avg
        a = alpha * a + (1 - alpha) * g                     grad_avg, kept if centered; else 0
        buffer = momentum * buffer + g / (sqrt(v - a**2) + eps)
        param = param - lr * buffer

    As torch.optim.RMSprop; `step` is counted, and read by nobody, as there.

    Reference:
        Tieleman and Hinton, Lecture 6.5 of Neural networks for machine learning, 2012.
        Graves, Generating sequences with recurrent neural networks, 2013 (centered).
    """
    grad = descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    square_avg = ema_of_square(state["square_avg"], grad, alpha)
    new_state = {"step": state["step"] + 1, "square_avg": square_avg}
    if centered:
        grad_avg = ema(state["grad_avg"], grad, alpha)
        new_state["grad_avg"] = grad_avg
        root = torch.addcmul(square_avg, grad_avg, grad_avg, value=-1).sqrt_()
    else:
        root = square_avg.sqrt()

    direction = grad / root.add_(per_member(eps, param))
    if not is_zero(momentum):
        direction = add_scaled(direction, state["momentum_buffer"], momentum)
        new_state["momentum_buffer"] = direction
    return add_scaled(param, direction, -lr), new_state


RMSPROP = Update(
    hyperparameters=("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"),
    init=init,
    apply=apply,
)
