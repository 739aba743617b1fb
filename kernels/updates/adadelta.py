"""Adadelta, as torch.optim.Adadelta."""

import torch
from torch import Tensor

from ._update import Hyperparameter, State, Update, add_scaled, descent_gradient, ema_of_square, per_member, zero_steps


def init(
    param: Tensor,  # [member, *shape]
    **_: object,
) -> State:
    """Return zero mean squares of the gradients and of the steps."""
    return {
        "step": zero_steps(param),
        "square_avg": torch.zeros_like(param),
        "acc_delta": torch.zeros_like(param),
    }


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; square_avg, acc_delta [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    rho: Hyperparameter,  # number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step along the gradient, scaled to the size of the steps before.

        g = grad + weight_decay * param
        v = rho * v + (1 - rho) * g**2                      square_avg
        delta = sqrt(a + eps) / sqrt(v + eps) * g
        a = rho * a + (1 - rho) * delta**2                  acc_delta
        param = param - lr * delta

    As torch.optim.Adadelta, whose lr the paper does not have; `step` is counted, and read by nobody, as there.

    Reference:
        Zeiler, ADADELTA: an adaptive learning rate method, 2012.
    """
    grad = descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    square_avg = ema_of_square(state["square_avg"], grad, rho)
    std = (square_avg + per_member(eps, param)).sqrt_()
    delta = (state["acc_delta"] + per_member(eps, param)).sqrt_().div_(std).mul_(grad)
    acc_delta = ema_of_square(state["acc_delta"], delta, rho)
    new_state = {"step": state["step"] + 1, "square_avg": square_avg, "acc_delta": acc_delta}
    return add_scaled(param, delta, -lr), new_state


ADADELTA = Update(
    hyperparameters=("lr", "rho", "eps", "weight_decay", "maximize"),
    init=init,
    apply=apply,
)
