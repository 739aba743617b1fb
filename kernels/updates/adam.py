"""Adam and AdamW, with AMSGrad, as torch.optim.Adam and torch.optim.AdamW: one formula, two weight decays."""

import torch
from torch import Tensor

from ._fused_adam import FUSED_ADAM
from ._update import (
    Hyperparameter,
    State,
    Update,
    add_scaled,
    decay_weights,
    ema,
    ema_of_square,
    per_member,
    zero_steps,
)


def init(
    param: Tensor,  # [member, *shape]
    *,
    amsgrad: bool,
    **_: object,
) -> State:
    """Return zero moments; with amsgrad also a zero maximum of the second."""
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")
    return {"step": zero_steps(param)} | {name: torch.zeros_like(param) for name in names}


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step [member]; exp_avg, exp_avg_sq, with amsgrad max_exp_avg_sq [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    betas: tuple[Hyperparameter, Hyperparameter],  # each number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    amsgrad: bool,
    maximize: bool,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, State]:
    """Step along the mean gradient over the root of its mean square, both corrected for their zero start.

        m = beta1 * m + (1 - beta1) * grad                  exp_avg
        v = beta2 * v + (1 - beta2) * grad**2               exp_avg_sq; amsgrad: its maximum so far
        param = param - lr * (m / c1) / (sqrt(v / c2) + eps)      c1 = 1 - beta1**t, c2 = 1 - beta2**t

    As torch.optim.Adam and AdamW. Both sides of the fraction are multiplied by sqrt(c2), which saves a pass
    over the parameters (the paper's section 2). Weight decay is in `decay_weights`.

    Reference:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015.
        Reddi et al., On the convergence of Adam and beyond, 2018 (AMSGrad).
    """
    beta1, beta2 = betas
    param, grad = decay_weights(
        param, grad, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize
    )
    step = state["step"] + 1
    exp_avg = ema(state["exp_avg"], grad, beta1)
    exp_avg_sq = ema_of_square(state["exp_avg_sq"], grad, beta2)
    new_state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if amsgrad:
        exp_avg_sq = torch.maximum(state["max_exp_avg_sq"], exp_avg_sq)
        new_state["max_exp_avg_sq"] = exp_avg_sq

    correction1 = 1 - beta1**step
    root_correction2 = (1 - beta2**step).sqrt()
    denom = exp_avg_sq.sqrt().add_(per_member(eps * root_correction2, param))
    return add_scaled(param, exp_avg / denom, -lr * root_correction2 / correction1), new_state


ADAM = Update(
    hyperparameters=("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"),
    init=init,
    apply=apply,
    fused=FUSED_ADAM,
)
