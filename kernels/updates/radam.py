"""RAdam: Adam that trusts its second moment only once enough steps went into it, as torch.optim.RAdam."""

import torch
from torch import Tensor

from ._update import (
    Hyperparameter,
    State,
    Update,
    add_scaled,
    decay_weights,
    ema,
    ema_of_square,
    over_members,
    per_member,
    zero_steps,
)


def init(
    param: Tensor,  # [member, *shape]
    **_: object,
) -> State:
    """Return zero moments."""
    return {
        "step": zero_steps(param),
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
    }


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; exp_avg, exp_avg_sq [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    betas: tuple[Hyperparameter, Hyperparameter],  # each number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    decoupled_weight_decay: bool,
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step as Adam, rectified for the variance of its early denominators.

        m = beta1 * m + (1 - beta1) * grad                  exp_avg
        v = beta2 * v + (1 - beta2) * grad**2               exp_avg_sq
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / c2               c1 = 1 - beta1**t, c2 = 1 - beta2**t
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        param = param - lr * m / c1 * (r * sqrt(c2) / (sqrt(v) + eps) if rho > 5 else 1)

    As torch.optim.RAdam; which case holds is decided for each member. Weight decay is in `decay_weights`.

    Reference:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020.
    """
    beta1, beta2 = betas
    param, grad = decay_weights(
        param, grad, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize
    )
    step = state["step"] + 1
    exp_avg = ema(state["exp_avg"], grad, beta1)
    exp_avg_sq = ema_of_square(state["exp_avg_sq"], grad, beta2)

    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / correction2
    rectification = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).sqrt()

    is_rectified = rho > 5
    scale = torch.where(is_rectified, rectification * correction2.sqrt(), 1.0)
    root = exp_avg_sq.sqrt().add_(per_member(eps, param))
    denom = torch.where(over_members(is_rectified, param), root, 1.0)
    new_state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return add_scaled(param, exp_avg / denom, -lr * scale / correction1), new_state


RADAM = Update(
    hyperparameters=("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize"),
    init=init,
    apply=apply,
)
