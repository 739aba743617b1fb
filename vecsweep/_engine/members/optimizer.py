"""From a torch.optim template to one update of all members.

An optimizer whose formula is in vecsweep.kernels.updates is applied to stacked tensors. Any other is stepped by its
own class, member by member, on views of the stacked parameters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._engine.caller.copying import copy_optimizer
from vecsweep._engine.caller.rng import Turns
from vecsweep._engine.members.ensemble import OptimizerState
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.stock import evaluating, load_state, save_state, step_
from vecsweep.kernels.updates import UPDATES, State, over_members


class StackedUpdate:
    """One formula for all members: a pure function of stacked tensors, to be traced with the rest of the step.

    Args:
        learner: whose optimizer is the template.
        varied: the names of the hyperparameters that members have for themselves.
        has_kernels: whether kernels may stand in for formulas, which read numbers on the host.
    """

    def __init__(self, learner: Learner, varied: Iterable[str] = ("lr",), *, has_kernels: bool = True) -> None:
        self._update = UPDATES[type(learner.optimizer)]
        self._varied = tuple(varied)
        self._has_kernels = has_kernels
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

    def state_bytes(self, parameters: Mapping[str, Tensor]) -> int:
        """What the state of one member takes, in bytes."""
        outline = {name: torch.empty((1, *p.shape), dtype=p.dtype, device="meta") for name, p in parameters.items()}
        states = self._fresh(outline)
        return sum(value.nbytes for state in states.values() for value in state.values())

    def stack(self, parameters: Mapping[str, Tensor], members: Sequence[OptimizerState | None]) -> dict[str, State]:
        """Stack what the members' optimizers remember of each parameter; where they remember nothing, it is fresh.

        Args:
            parameters: `[member, *shape]`, by name.
            members: what each remembers, be it of torch.optim or of an ensemble; None for nothing.
        """
        states = {}
        for name, fresh in self._fresh(parameters).items():
            kept = [{} if member is None else member.of_parameters.get(name, {}) for member in members]
            states[name] = {key: self._stacked(key, value, kept) for key, value in fresh.items()}
        return states

    def _fresh(self, parameters: Mapping[str, Tensor]) -> dict[str, State]:
        """The states before the first step."""
        # What is varied is a tensor to the formulas, which leave out terms only for a number that is zero.
        varied = {name: torch.ones(1) for name in ("lr", *self._varied)}
        return {
            name: self._update.init(parameters[name], **(options | group.hyper(varied)))
            for group, options in self._groups
            for name in group.names
        }

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
        is_stepped: Tensor,  # [member]
    ) -> tuple[dict[str, Tensor], dict[str, State]]:
        """Compute the new parameters and states; a parameter without gradient stays, as in torch.optim.

        Members that are not stepped keep their parameters.
        """
        parameters, states = dict(parameters), dict(states)
        for group, options in self._groups:
            own = options | group.hyper(hyper)
            due = {name: grad for name in group.names if (grad := grads[name]) is not None}
            old, of_old = [parameters[name] for name in due], [states[name] for name in due]
            kernel = self._update.kernel_for(old, list(due.values())) if self._has_kernels else None
            if kernel is not None:
                all_new, all_states = kernel.apply_all(old, list(due.values()), of_old, is_stepped, **own)
                parameters.update(zip(due, all_new, strict=True))
                states.update(zip(due, all_states, strict=True))
                continue
            for name, grad in due.items():
                new, states[name] = self._update.apply(parameters[name], grad, states[name], **own)
                parameters[name] = torch.where(over_members(is_stepped, new), new, parameters[name])
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
        hyper: Mapping[str, Sequence[float]],  # [member]
        is_stepped: Sequence[bool],  # [member]
        seeds: Sequence[int],  # [member]
        turns: Turns,
    ) -> None:
        """Step the members named, each at its own hyperparameters; those of a seed draw the same random numbers."""
        for i, (views, optimizer) in enumerate(zip(self._views, self._optimizers, strict=True)):
            if not is_stepped[i]:
                continue
            for name, view in views.items():
                stacked = grads[name]
                view.grad = None if stacked is None else stacked[i]
            for group, own in zip(self._groups, optimizer.param_groups, strict=True):
                own.update(group.hyper({name: of_members[i] for name, of_members in hyper.items()}))
            with turns.take(seeds[i]):
                step_(optimizer)
            self._write_back_(i)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put all members at the weights that they are evaluated at; see `stock.evaluating`."""
        members = range(len(self._optimizers))
        try:
            with evaluating(self._optimizers):
                for i in members:
                    self._write_back_(i)
                yield
        finally:
            for i in members:
                self._write_back_(i)

    def state(self, i: int) -> OptimizerState:
        """The state of one member's optimizer, by parameter name; its tensors are the optimizer's own."""
        return save_state(self._optimizers[i], self._views[i])

    def _write_back_(self, i: int) -> None:
        """Take over what an optimizer has put into `p.data` in place of the view that was there."""
        for name, view in self._views[i].items():
            stacked_view = self._parameters[name][i]
            if view.data_ptr() != stacked_view.data_ptr():
                kept = self._optimizers[i].state[view]
                for key, value in kept.items():
                    if isinstance(value, Tensor) and value.data_ptr() == stacked_view.data_ptr():
                        kept[key] = value.clone()  # it has swapped the two
                stacked_view.copy_(view.data)
                view.data = stacked_view
