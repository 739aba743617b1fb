"""One member's optimizer as torch.optim has it: stepped, evaluated, and passed on by its `state_dict`.

A member passes from one engine to the other by what its optimizer remembers, whoever trained it: `save_state` takes it
out of an optimizer and `load_state` puts it, or an ensemble's, into a fresh one.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._engine.members.ensemble import OptimizerState
from vecsweep.kernels.updates import UPDATES

_FUSED_ON_CPU = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
_KERNEL_DTYPES = (torch.float32, torch.float64)


def fastest_kernel(optimizer: Optimizer) -> dict[str, bool]:
    """The option by which torch.optim takes its fastest kernel for a CPU, if the caller leaves that open.

    It never takes it by itself, and steps all parameters in one pass over memory with it, in place of ten. Not for 16
    bits, in which the kernels compute otherwise, and SGD's leaves most numbers of a parameter as they are (torch 2.13).
    """
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"] if p.requires_grad]
    is_left_open = all(
        group.get("fused") is None
        and group.get("foreach") is None
        and not (group.get("differentiable") or group.get("capturable"))
        for group in groups
    )
    is_fused = (
        type(optimizer) in _FUSED_ON_CPU
        and is_left_open
        and all(p.device.type == "cpu" and p.dtype in _KERNEL_DTYPES for p in parameters)
        and not any(isinstance(group["lr"], Tensor) for group in groups)
    )
    return {"fused": True} if is_fused else {}


class ChangesLr(ValueError):  # noqa: N818 - which of an optimizer's errors it is
    """An optimizer has a learning rate of its own, so that those of a sweep are none to compare."""


def step_(optimizer: Optimizer, kernel: Mapping[str, bool] | None = None) -> None:
    """Take a stock optimizer's step; one whose learning rate the parameters' dtype cannot hold makes them NaN.

    torch.optim raises there, but to a sweep it is a member that diverges like any other.

    Args:
        optimizer: over parameters with gradients.
        kernel: as `fastest_kernel` has it, where the gradients allow it.

    Raises:
        ChangesLr: the optimizer sets its learning rate by itself.
    """
    if kernel and _is_for_kernel(optimizer):
        with _options_set(optimizer, kernel):
            step_(optimizer)
        return
    lrs = [group["lr"] for group in optimizer.param_groups]
    try:
        optimizer.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.fill_(torch.nan)
    for lr, group in zip(lrs, optimizer.param_groups, strict=True):
        if group["lr"] != lr:
            raise ChangesLr(
                "`optimizer` must leave its lr to the sweep, which sets it before each step; "
                f"{type(optimizer).__name__} has changed {lr:.6g} to {group['lr']:.6g} by itself. Sweep with one that "
                "keeps it, and say by `schedules` how it changes."
            )


def _is_for_kernel(optimizer: Optimizer) -> bool:
    """Whether gradients are dense, and SGD has a momentum for all of them or for none; else torch raises an error."""
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    is_dense = all(p.grad.layout == torch.strided for p in stepped if p.grad is not None)
    return is_dense and len({optimizer.state.get(p, {}).get("momentum_buffer") is None for p in stepped}) < 2


@contextmanager
def _options_set(optimizer: Optimizer, options: Mapping[str, Any]) -> Iterator[None]:
    """Set options of all parameter groups for a while."""
    before = [{key: group[key] for key in options} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(options)
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            group.update(own)


def save_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """What an optimizer remembers; its tensors are the optimizer's own."""
    rest = optimizer.state_dict()
    states, positions = dict(rest["state"]), _positions(optimizer)
    rest = {**rest, "state": states}
    return OptimizerState(
        {name: states.pop(positions[p]) for name, p in parameters.items() if positions[p] in states}, rest
    )


def load_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: OptimizerState | None) -> None:
    """Put what `save_state` or an ensemble gave into a fresh optimizer of the same class.

    Args:
        optimizer: over these parameters.
        parameters: by name.
        state: None for what nobody has stepped yet.
    """
    if state is None:
        return
    kept = {name: copy.deepcopy(of_parameter) for name, of_parameter in _as_torch_keeps(optimizer, parameters, state)}
    fresh, positions = optimizer.state_dict(), _positions(optimizer)
    by_position = {positions[parameters[name]]: of_parameter for name, of_parameter in kept.items()}
    loaded = {**fresh, **copy.deepcopy(state.rest)}
    loaded["state"] = {**fresh["state"], **loaded["state"], **by_position}
    optimizer.load_state_dict(loaded)
    for name, of_parameter in kept.items():
        # It casts all to the parameter's dtype, be it a counter or the master copy of a bfloat16 parameter, which
        # training without a break does not. Only the `step` has to be as it makes it, for fused and captured kernels.
        exact = {key: value for key, value in of_parameter.items() if key != "step"}
        optimizer.state[parameters[name]].update(exact)


def _positions(optimizer: Optimizer) -> dict[Tensor, int]:
    """By what position each parameter goes in the optimizer's `state_dict`."""
    return {p: position for position, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}


def _as_torch_keeps(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: OptimizerState
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state of each parameter that was stepped, with the keys that the optimizer's class has, where it has them."""
    update = UPDATES.get(type(optimizer))
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, of_parameter in state.of_parameters.items():
        if update is None:
            yield name, of_parameter
        elif of_parameter.get("step") != 0:  # else it had no gradient yet; the class makes a state when one comes
            p = parameters[name]
            is_on_device = groups[p].get("capturable") or groups[p].get("fused")
            device = p.device if is_on_device else torch.device("cpu")
            yield (
                name,
                {
                    key: torch.as_tensor(value).to(device) if key in update.counters else value
                    for key, value in of_parameter.items()
                    if key not in update.not_in_torch
                },
            )


def has_modes(optimizer: Optimizer) -> bool:
    """Whether an optimizer evaluates at other weights than it trains at, as the schedule-free ones do."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


@contextmanager
def evaluating(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Put parameters where their optimizers have them evaluated, such as at an average, and back to train on."""
    switched = [optimizer for optimizer in optimizers if has_modes(optimizer)]
    try:
        for optimizer in switched:
            optimizer.eval()  # type: ignore[attr-defined]
        yield
    finally:
        for optimizer in switched:
            optimizer.train()  # type: ignore[attr-defined]
