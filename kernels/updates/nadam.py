"""NAdam: Adam with Nesterov momentum, as torch.optim.NAdam."""

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
    per_member,
    zero_steps,
)


def init(
    param: Tensor,  # [member, *shape]
    **_: object,
) -> State:
    """Return zero moments, and an empty product of momenta."""
    return {
        "step": zero_steps(param),
        "mu_product": zero_steps(param) + 1,
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
    }


def apply(
    param: Tensor,  # [member, *shape]
    grad: Tensor,  # [member, *shape]
    state: State,  # step, mu_product [member]; exp_avg, exp_avg_sq [member, *shape]
    *,
    lr: Hyperparameter,  # number or [member]
    betas: tuple[Hyperparameter, Hyperparameter],  # each number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    momentum_decay: Hyperparameter,  # number or [member]
    decoupled_weight_decay: bool,
    maximize: bool,
) -> tuple[Tensor, State]:
    """Step as Adam, with a momentum that looks one step ahead and warms up.

        mu_t = beta1 * (1 - 0.96**(t * momentum_decay) / 2)
        m = beta1 * m + (1 - beta1) * grad                  exp_avg
        v = beta2 * v + (1 - beta2) * grad**2               exp_avg_sq
        ahead = (1 - mu_t) * grad / (1 - mu_1 ... mu_t) + mu_{t+1} * m / (1 - mu_1 ... mu_{t+1})
        param = param - lr * ahead / (sqrt(v / (1 - beta2**t)) + eps)

    As torch.optim.NAdam, but `mu_product` is float64: torch keeps it in float32 unless the default dtype is
    float64, which moves its parameters by about 1e-8. Weight decay is in `decay_weights`.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2016.
    """
    beta1, beta2 = betas
    param, grad = decay_weights(
        param, grad, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize
    )
    step = state["step"] + 1
    exp_avg = ema(state["exp_avg"], grad, beta1)
    exp_avg_sq = ema_of_square(state["exp_avg_sq"], grad, beta2)

    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    mu_product = state["mu_product"] * mu
    share_of_grad = -lr * (1 - mu) / (1 - mu_product)
    share_of_exp_avg = -lr * mu_next / (1 - mu_product * mu_next)

    descent = add_scaled(grad * per_member(share_of_grad, param), exp_avg, share_of_exp_avg)
    denom = (exp_avg_sq / per_member(1 - beta2**step, param)).sqrt_().add_(per_member(eps, param))
    new_state = {"step": step, "mu_product": mu_product, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return torch.addcdiv(param, descent, denom), new_state


NADAM = Update(
    hyperparameters=(
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "momentum_decay",
        "decoupled_weight_decay",
        "maximize",
    ),
    init=init,
    apply=apply,
    counters=("step", "mu_product"),
)
