"""From a torch.optim template to one update of all members.

An optimizer whose formula is in vecsweep.kernels.updates is applied to stacked tensors. Any other is stepped by its
own class, member by member, on views of the stacked parameters.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._engine.copying import copy_optimizer
from vecsweep._engine.ensemble import OptimizerState
from vecsweep._engine.learner import Learner
from vecsweep.kernels.updates import UPDATES, State


class StackedUpdate:
    """One formula for all members: a pure function of stacked tensors, to be traced with the rest of the step.

    Args:
        learner: whose optimizer is the template.
        varied: the names of the hyperparameters that members have for themselves.
    """

    def __init__(self, learner: Learner, varied: Iterable[str] = ("lr",)) -> None:
        self._update = UPDATES[type(learner.optimizer)]
        self._varied = tuple(varied)
        self._groups = [
            (group, {k: v for k, v in group.options.items() if k in self._update.hyperparameters})
            for group in learner.groups
        ]

    @staticmethod
    def suits(learner: Learner) -> bool:
        """Whether there is a formula for this optimizer and these parameters."""
        optimizer = learner.optimizer
        has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        is_complex = any(p.is_complex() for p in learner.parameters.values())
        return type(optimizer) in UPDATES and not has_hooks and not is_complex

    def stack(self, parameters: Mapping[str, Tensor], members: Sequence[OptimizerState | None]) -> dict[str, State]:
        """Stack what the members' optimizers remember of each parameter; where they remember nothing, it is fresh.

        Args:
            parameters: `[member, *shape]`, by name.
            members: what each remembers, be it of torch.optim or of an ensemble; None for nothing.
        """
        states = {}
        # What is varied is a tensor to the formulas, which leave out terms only for a number that is zero.
        varied = {name: torch.ones(1) for name in ("lr", *self._varied)}
        for group, options in self._groups:
            for name in group.names:
                fresh = self._update.init(parameters[name], **(options | group.hyper(varied)))
                kept = [{} if member is None else member.of_parameters.get(name, {}) for member in members]
                states[name] = {key: self._stacked(key, value, kept) for key, value in fresh.items()}
        return states

    def _stacked(self, key: str, fresh: Tensor, kept: Sequence[Mapping[str, Any]]) -> Tensor:
        """Stack one value of one parameter: `[member, *shape]`, or `[member]` of a counter."""
        values = [own.get(key, 1 if own and key in self._update.not_in_torch else None) for own in kept]
        if all(value is None for value in values):
            return fresh
        pairs = zip(values, fresh, strict=True)
        return torch.stack([start if value is None else torch.as_tensor(value).to(start) for value, start in pairs])

    def apply(
        self,
        parameters: dict[str, Tensor],  # [member, *shape]
        grads: Mapping[str, Tensor | None],  # [member, *shape]; None where the loss does not depend on the parameter
        states: dict[str, State],
        hyper: Mapping[str, Tensor],  # [member] float64
    ) -> tuple[dict[str, Tensor], dict[str, State]]:
        """Compute the new parameters and states; a parameter without gradient stays, as in torch.optim."""
        parameters, states = dict(parameters), dict(states)
        for group, options in self._groups:
            own = options | group.hyper(hyper)
            for name in group.names:
                if (grad := grads[name]) is not None:
                    parameters[name], states[name] = self._update.apply(parameters[name], grad, states[name], **own)
        return parameters, states


class MemberOptimizers:
    """One optimizer of the caller's class for each member, on views of the stacked parameters.

    Args:
        learner: whose optimizer is the template.
        parameters: `[member, *shape]`, by name; updated in place.
        states: of each member's optimizer, by parameter name; None for a fresh one.
    """

    def __init__(
        self, learner: Learner, parameters: Mapping[str, Tensor], states: Sequence[OptimizerState | None]
    ) -> None:
        self._groups = learner.groups
        self._parameters = parameters
        self._views: list[dict[str, nn.Parameter]] = []
        self._optimizers: list[Optimizer] = []
        for i, state in enumerate(states):
            views = {name: nn.Parameter(stacked[i]) for name, stacked in parameters.items()}
            memo = {id(learner.parameters[name]): view for name, view in views.items()}
            optimizer = copy_optimizer(learner.optimizer, memo)
            load_state(optimizer, views, state)
            self._views.append(views)
            self._optimizers.append(optimizer)

    def step_(
        self,
        grads: Mapping[str, Tensor | None],  # [member, *shape]
        hyper: Mapping[str, Tensor],  # [member]
        is_stepped: Sequence[bool],  # [member]
    ) -> None:
        """Step the members named, each at its own hyperparameters."""
        values = {name: of_members.tolist() for name, of_members in hyper.items()}
        for i, (views, optimizer) in enumerate(zip(self._views, self._optimizers, strict=True)):
            if not is_stepped[i]:
                continue
            for name, view in views.items():
                stacked = grads[name]
                view.grad = None if stacked is None else stacked[i]
            for group, own in zip(self._groups, optimizer.param_groups, strict=True):
                own.update(group.hyper({name: of_members[i] for name, of_members in values.items()}))
            step_(optimizer)
            for name, view in views.items():
                stacked_view = self._parameters[name][i]
                if view.data_ptr() != stacked_view.data_ptr():  # the optimizer has put a new tensor into `p.data`
                    stacked_view.copy_(view.data)
                    view.data = stacked_view

    def state(self, i: int) -> OptimizerState:
        """Copy the state of one member's optimizer, by parameter name."""
        return save_state(self._optimizers[i], self._views[i])


def step_(optimizer: Optimizer) -> None:
    """Take a stock optimizer's step; one whose learning rate the parameters' dtype cannot hold makes them NaN.

    torch.optim raises there, but to a sweep it is a member that diverges like any other.
    """
    try:
        optimizer.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.fill_(torch.nan)


def save_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Copy what an optimizer remembers."""
    rest = copy.deepcopy(optimizer.state_dict())
    states, places = rest["state"], _places(optimizer)
    return OptimizerState({name: states.pop(places[p]) for name, p in parameters.items() if places[p] in states}, rest)


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
    fresh, places = optimizer.state_dict(), _places(optimizer)
    by_place = {places[parameters[name]]: of_parameter for name, of_parameter in kept.items()}
    loaded = {**fresh, **copy.deepcopy(state.rest)}
    loaded["state"] = {**fresh["state"], **loaded["state"], **by_place}
    optimizer.load_state_dict(loaded)
    for name, of_parameter in kept.items():
        # It casts all to the parameter's dtype, be it a counter or the master copy of a bfloat16 parameter, which
        # training without a break does not. Only the `step` has to be as it makes it, for fused and captured kernels.
        exact = {key: value for key, value in of_parameter.items() if key != "step"}
        optimizer.state[parameters[name]].update(exact)


def _places(optimizer: Optimizer) -> dict[Tensor, int]:
    """By what number each parameter goes in the optimizer's `state_dict`."""
    return {p: place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}


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
