"""Copies of the caller's models and optimizers: whole, where Python's own would leave something out."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from vecsweep._engine.caller.lending import share
from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.caller.rebinding import Rebinder
from vecsweep.several import Several, parts_of

# In eval mode bitsandbytes packs weights of four bits anew for some CPUs, in place, after which they train no more.
_PACKS = "support_avx512bf16_for_cpu"


def copy_model(
    model: nn.Module, optimizer: Optimizer | None = None, *, lent: Mapping[str, nn.Parameter] | None = None
) -> tuple[nn.Module, Optimizer | None]:
    """Copy a model with the hooks on its parameters, and with it an optimizer over them; what is compiled is plain.

    Functions that its modules keep refer to the copy where they referred to the model.

    Args:
        model: the model.
        optimizer: over its parameters.
        lent: those of its parameters whose memory the copy shares, by name.

    Raises:
        TypeError: the model, or something in it, refuses to be copied.
        torch.OutOfMemoryError: there is no memory for a copy.
    """
    model = _compiled_from(model)
    # Tensors computed from parameters (weight_norm keeps one) refuse to be copied; they are computed anew anyway.
    memo: dict[int, Any] = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if not _is_void(value)
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor) and not leaf.is_leaf
    }
    memo |= (exchanged := share((lent or {}).values()))
    shared = {id(own) for own in exchanged.values()}
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        if not is_out_of_memory(error):
            raise TypeError(
                f"`model` must be one that `copy.deepcopy` can copy, because each member trains a copy; of this "
                f"{type(model).__name__} it says: {error} Give what refuses to be copied a `__deepcopy__`, or keep it "
                "outside the model."
            ) from error
        size = sum(p.nbytes for p in model.parameters()) / 2**20
        raise torch.OutOfMemoryError(
            f"There is not enough memory for a copy of the model. A member has {size:.3g} MiB of parameters. Train a "
            f"smaller one, or free some memory; {error}"
        ) from error
    rebound = Rebinder(memo)
    rebound.rebind_(copied)
    for own, parameter in zip(copied.parameters(), model.parameters(), strict=True):
        for hook in hooks_of(parameter):
            own.register_hook(rebound(hook))
        for hook in accumulation_hooks_of(parameter):
            own.register_post_accumulate_grad_hook(rebound(hook))
    for module in list(copied.modules()):
        if isinstance(module, nn.RNNBase) and not any(id(p) in shared for p in module.parameters()):
            module.flatten_parameters()  # which cuDNN wants in one piece, and warns at each pass of others
        vars(module).pop("_compiled_call_impl", None)  # of `model.compile()`
        if _PACKS in vars(module):
            setattr(module, _PACKS, False)
        for name, part in module.named_children():
            if (plain := _compiled_from(part)) is not part:
                setattr(module, name, plain)
    return copied, None if optimizer is None else copy_optimizer(optimizer, memo)


def _is_void(value: Any) -> bool:
    """Whether an attribute of a module has nothing to go through, as most have: they hold no hooks, or a flag."""
    return value is None or type(value) is bool or (type(value) in (dict, OrderedDict, set) and not value)


def set_to_train(model: nn.Module) -> None:
    """Put a model into training mode as a loop does.

    What its author's own `train` leaves in eval mode (frozen batch norms, say) stays there, and so does what the caller
    has put into eval mode, unless that is the whole model.

    Args:
        model: the model.
    """
    left = [module for module in model.modules() if not module.training] if model.training else []
    is_default = all(type(m).train is nn.Module.train and "train" not in vars(m) for m in model.modules())
    if not (model.training and is_default):
        model.train()
    for module in left:
        module.training = False


def uncompiled(function: Any) -> Any:
    """What a function was before torch.compile, which can neither be mapped nor traced as a part of a step."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def _compiled_from(module: nn.Module) -> nn.Module:
    """What a module was before torch.compile; asking its class would import the compiler."""
    return module._modules.get("_orig_mod") or module


def copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copy an optimizer over to other parameters, with its hooks and the attributes of its class's own.

    Args:
        optimizer: the optimizer; torch.optim leaves those out of its copies.
        memo: as in `copy.deepcopy`: from the ids of the parameters to what stands for them.
    """
    if isinstance(optimizer, Several):
        return Several([copy_optimizer(part, memo) for part in optimizer.parts])
    copied = copy.deepcopy(optimizer, memo)
    for key, value in vars(optimizer).items():
        # A scheduler puts a `step` of its own on the caller's optimizer, which refers to that optimizer.
        if key not in vars(copied) and key != "step":
            setattr(copied, key, copy.deepcopy(value, memo))
    for hook in optimizer._optimizer_step_pre_hooks.values():
        copied.register_step_pre_hook(hook)
    for hook in optimizer._optimizer_step_post_hooks.values():
        copied.register_step_post_hook(hook)
    return copied


def hooks_of(parameter: Tensor) -> list[Any]:
    """The hooks that a parameter's gradient passes through."""
    return list((parameter._backward_hooks or {}).values())


def accumulation_hooks_of(parameter: Tensor) -> list[Any]:
    """The hooks that are called with a parameter once it has its gradient."""
    return list((parameter._post_accumulate_grad_hooks or {}).values())


def forget_(optimizer: Optimizer) -> None:
    """Take from a copied template what it learned in steps of the caller's."""
    if all(isinstance(own, dict) and not own for own in optimizer.state.values()):  # some look for one, and leave it
        return
    for part in parts_of(optimizer):
        kinds = [kind for kind in type(part).__mro__ if kind is not Optimizer]
        if not any(f"{kind.__module__}.".startswith("torch.optim.") for kind in kinds):
            raise ValueError(
                f"`optimizer` must not have been stepped; {type(part).__name__} holds state, and vecsweep does not "
                "know how to make it fresh. Pass a function that builds a new one: `lambda params: ...`."
            )
    optimizer.state.clear()
    for part in parts_of(optimizer):
        if isinstance(part, torch.optim.Adagrad):  # the one class that fills its state when it is built
            for group in part.param_groups:
                for p in group["params"]:
                    total = torch.full_like(p, group["initial_accumulator_value"], requires_grad=False)
                    part.state[p] = {"step": torch.tensor(0.0), "sum": total}
