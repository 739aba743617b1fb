"""Adagrad, as torch.optim.Adagrad; dense gradients only."""

import torch
from torch import Tensor

from ._update import Hyperparameter, State, Update, add_scaled, descent_gradient, per_member, zero_steps


def init(
    param: Tensor,  # [member, *shape]
    *,
    initial_accumulator_value: Hyperparameter,  # number or [member]
    **_: object,
) -> State:
    """Return a sum that starts from `initial_accumulator_value`."""
    return {
        "step": zero_steps(param),
        "sum": torch.zeros_like(param) + per_member(initial_accumulator_value, param),
    }


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; sum [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    lr_decay: Hyperparameter,  # number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    maximize: bool,
    **_: object,
) -> tuple[Tensor, State]:
    """Step along the gradient over the root of the sum of its squares.

        g = grad + weight_decay * param
        s = s + g**2                                        sum
        param = param - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    As torch.optim.Adagrad.

    Reference:
        Duchi et al., Adaptive subgradient methods for online learning and stochastic optimization, 2011.
    """
    grad = descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    step = state["step"] + 1
    square_sum = torch.addcmul(state["sum"], grad, grad)
    decayed_lr = lr / (1 + (step - 1) * lr_decay)
    denom = square_sum.sqrt().add_(per_member(eps, param))
    return add_scaled(param, grad / denom, -decayed_lr), {"step": step, "sum": square_sum}


ADAGRAD = Update(
    hyperparameters=("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "maximize"),
    init=init,
    apply=apply,
)
