"""What an optimizer must be like, so that each member can train with a copy of it."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from vecsweep.several import Several
from vecsweep.task import say_what_optimizer_is


def check_template(optimizer: Any) -> None:
    """Refuse an optimizer whose copies could not train members, or could not pass on what they remember.

    Raises:
        TypeError: it is none of torch.optim, or needs more than one gradient a step.
        ValueError: it remembers something outside its `state`.
    """
    if isinstance(optimizer, Several):
        for part in optimizer.parts:
            check_template(part)
            if hasattr(part, "train") and hasattr(part, "eval"):
                raise ValueError(
                    f"`optimizer` must not have {type(part).__name__} among several: it evaluates at other weights "
                    "than it trains at. Put all parameters into groups of one."
                )
        return
    if not isinstance(optimizer, Optimizer):
        raise TypeError(say_what_optimizer_is(optimizer))
    name = type(optimizer).__name__
    if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        raise TypeError(
            f"`optimizer` must take one gradient a step; {name} needs two, one for each of `first_step` and "
            "`second_step`. Sweep with the optimizer that it is built on."
        )
    if needs_closure(optimizer):
        raise TypeError(
            f"`optimizer` must take one gradient a step; {name} evaluates a closure, so that its members cannot step "
            "together. Use a first-order optimizer, such as SGD or AdamW."
        )
    if outside := _kept_outside_state(optimizer):
        raise ValueError(
            f"`optimizer` must keep all that it remembers in its `state` and `param_groups`, which members pass on; "
            f"{name} keeps some of it in {outside}. Keep it in `self.state[p]`, or sweep with the optimizer inside."
        )


def needs_closure(optimizer: Any) -> bool:
    """Whether the `step` of an optimizer's class takes a function that it evaluates, and does not do without."""
    try:
        # Of the class: a scheduler puts a `step` of another signature on the optimizer itself.
        _, *parameters = inspect.signature(type(optimizer).step).parameters.values()
    except (AttributeError, TypeError, ValueError):  # nobody can say; the step will
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _kept_outside_state(optimizer: Optimizer) -> str | None:
    """Name what an optimizer has besides its `state` that steps may change: weights, a module, another optimizer."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return "attributes, as a wrapper that does not call `super().__init__`"
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, value in vars(optimizer).items():
        if key in ("state", "param_groups", "defaults"):
            continue
        for leaf in pytree.tree_leaves(value):
            is_kept = isinstance(leaf, Tensor) and leaf.numel() > 1 and id(leaf) not in own
            if is_kept or isinstance(leaf, nn.Module | Optimizer):
                return f"`{key}`"
    return None
