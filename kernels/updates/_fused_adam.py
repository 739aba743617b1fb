"""Adam and AdamW by torch's kernel for a CPU, which passes once over what the operators of a formula pass ten times.

The kernel takes one learning rate, so that it is called for one member after another, with all parameters of each. As
an operator of its own it can be traced; where a graph then finds that nobody reads the old state any more, it writes
the new one over it (`step_`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._update import Fused, Hyperparameter, State

_NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
# What calling it takes for a member, and for each of its parameters, and what the formula's operators take for a
# parameter, and for a number of it beyond the kernel's own; us, of AdamW on a CPU. They only tell which is faster.
_CALL, _CALL_PER_PARAM, _FORMULA_PER_PARAM, _FORMULA_PER_NUMBER = 10.0, 2.5, 60.0, 0.003


def suits(params: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Tell whether the kernel takes such tensors, and is faster than the formula.

    The more members there are, and the smaller they are, the longer it takes to call it for each of them.
    """
    first, num = params[0], len(params)
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.float64):
        return False
    are_alike = all(t.dtype == first.dtype and t.device == first.device for t in (*params, *grads))
    num_members, num_numbers = len(first), sum(p.numel() for p in params)
    calls_us = num_members * (_CALL + num * _CALL_PER_PARAM)
    is_faster = calls_us < num * _FORMULA_PER_PARAM + num_numbers * _FORMULA_PER_NUMBER
    return are_alike and is_faster and all(p.is_contiguous() for p in params)


def apply_all(
    params: Sequence[Tensor],  # each [member, *shape]
    grads: Sequence[Tensor],  # likewise
    states: Sequence[State],  # as in `adam.apply`
    is_stepped: Tensor,  # [member]
    *,
    lr: Hyperparameter,  # number or [member]
    betas: tuple[Hyperparameter, Hyperparameter],  # each number or [member]
    eps: Hyperparameter,  # number or [member]
    weight_decay: Hyperparameter,  # number or [member]
    amsgrad: bool,
    maximize: bool,
    decoupled_weight_decay: bool,
) -> tuple[list[Tensor], list[State]]:
    """Step all parameters of the members that are to be stepped; the others keep theirs, and their moments."""
    steps = [state["step"] + 1 for state in states]
    numbers = (lr, *betas, eps, weight_decay)
    moments = [[state[name] for state in states] for name in _NAMES[: 3 if amsgrad else 2]]
    results = _OPERATOR(
        list(params),
        [grad.contiguous() for grad in grads],
        *moments,
        *([] if amsgrad else [[]]),
        steps,
        is_stepped,
        [number for number in numbers if isinstance(number, Tensor)],
        [i for i, number in enumerate(numbers) if isinstance(number, Tensor)],
        [0.0 if isinstance(number, Tensor) else float(number) for number in numbers],
        [amsgrad, maximize, decoupled_weight_decay],
    )
    own = [results[i :: len(params)] for i in range(len(params))]  # of each parameter, itself and its moments
    new = [{"step": step} | dict(zip(_NAMES, rest, strict=False)) for step, (_, *rest) in zip(steps, own, strict=True)]
    return [first for first, *_ in own], new


def step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],  # each [member], this one counted
    is_stepped: Tensor,
    varied: Sequence[Tensor],  # each [member]
    which: Sequence[int],  # of lr, beta1, beta2, eps, weight_decay those are
    numbers: Sequence[float],  # the others of these, in their places
    flags: Sequence[bool],  # amsgrad, maximize, decoupled_weight_decay
) -> None:
    """Step the parameters of members, and their moments, in place."""
    amsgrad, maximize, is_decoupled = flags
    kernel = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
    of_members = [[number] * len(is_stepped) for number in numbers]
    for i, values in zip(which, varied, strict=True):
        of_members[i] = values.tolist()
    columns = [zip(*map(torch.unbind, tensors), strict=True) for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    maxima = zip(*map(torch.unbind, max_exp_avg_sqs), strict=True) if amsgrad else [()] * len(is_stepped)
    counts = torch.stack(list(steps), dim=1).float().unbind()
    rows = zip(is_stepped.tolist(), *columns, maxima, counts, zip(*of_members, strict=True), strict=True)
    for is_due, param, grad, exp_avg, exp_avg_sq, maximum, count, (lr, beta1, beta2, eps, weight_decay) in rows:
        if is_due:
            kernel(
                param,
                grad,
                exp_avg,
                exp_avg_sq,
                maximum,
                count.unbind(),
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
            )


def _stepped(*arguments: Any) -> list[Tensor]:
    """What `step_` makes of the tensors that it writes to, in the order of `WRITTEN`; they stay as they are."""
    own: list[Any] = [[t.clone() for t in value] if i in WRITTEN else value for i, value in enumerate(arguments)]
    step_(*own)
    return [tensor for i in WRITTEN for tensor in own[i]]


WRITTEN = (0, 2, 3, 4)  # the arguments of `step_` that it writes to
_NAMESPACE = __name__.replace(".", "_")  # the module may be imported by two names, an operator be defined by one once
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")
_LIBRARY.define(
    "adam(Tensor[] params, Tensor[] grads, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, Tensor[] max_exp_avg_sqs, "
    "Tensor[] steps, Tensor is_stepped, Tensor[] varied, int[] which, float[] numbers, bool[] flags) -> Tensor[]"
)
_LIBRARY.impl("adam", _stepped, "CPU")
_OPERATOR = getattr(torch.ops, _NAMESPACE).adam.default
FUSED_ADAM = Fused(_OPERATOR, step_, WRITTEN, suits, apply_all)
