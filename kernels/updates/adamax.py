"""Adamax: Adam with the infinity norm for its second moment, as torch.optim.Adamax."""

import torch
from torch import Tensor

from ._update import Hyperparameter, State, Update, add_scaled, descent_gradient, ema, per_member, zero_steps


def init(
    param: Tensor,  # [member, *shape]
    **_: object,
) -> State:
    """Return a zero mean and a zero norm."""
    return {
        "step": zero_steps(param),
        "exp_avg": torch.zeros_like(param),
        "exp_inf": torch.zeros_like(param),
    }


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; exp_avg, exp_inf [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    betas: tuple[Hyperparameter, Hyperparameter],  # each number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step along the mean gradient over its decayed maximum.

        g = grad + weight_decay * param
        m = beta1 * m + (1 - beta1) * g                     exp_avg
        u = max(beta2 * u, abs(g) + eps)                    exp_inf
        param = param - lr / (1 - beta1**t) * m / u

    As torch.optim.Adamax: eps is inside the maximum, where the paper has none.

    Reference:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, section 7.
    """
    beta1, beta2 = betas
    grad = descent_gradient(param, grad, weight_decay=weight_decay, maximize=maximize)
    step = state["step"] + 1
    exp_avg = ema(state["exp_avg"], grad, beta1)
    exp_inf = torch.maximum(state["exp_inf"] * per_member(beta2, param), grad.abs().add_(per_member(eps, param)))
    param = add_scaled(param, exp_avg / exp_inf, -lr / (1 - beta1**step))
    return param, {"step": step, "exp_avg": exp_avg, "exp_inf": exp_inf}


ADAMAX = Update(
    hyperparameters=("lr", "betas", "eps", "weight_decay", "maximize"),
    init=init,
    apply=apply,
)
