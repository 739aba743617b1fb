"""One step of all members, as a pure function of stacked tensors.

    losses = vmap(one member's loss)(parameters, buffers, batch)     only the forward pass is mapped
    grads  = autograd.grad(sum of losses, parameters)                members are independent: their own gradients
    parameters, optimizer = update(parameters, grads, optimizer)     where a member is alive

The losses are summed, not averaged: a mean over N members would divide every learning rate by N.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from vecsweep._engine.data.batches import copy_batch, for_each, hand_out, member_dims
from vecsweep._engine.members.ensemble import Ensemble, LossScale
from vecsweep._engine.members.objective import Objective
from vecsweep._engine.members.optimizer import StackedUpdate
from vecsweep._types import Batch
from vecsweep.kernels._compiled import compiled_run_through
from vecsweep.kernels.rules import (
    Draw,
    MemberRules,
    SharedInputsError,
    checkpoints_run_through,
    functions_for_each,
)
from vecsweep.kernels.updates import over_members, per_member

REFUSED = -torch.inf  # the loss of a pass that raises where it is not batched
Grads = dict[str, Tensor | None]  # [member, *shape]; None where the loss does not depend on the parameter


class StepResult(NamedTuple):
    """What one step yields.

    Attributes:
        ensemble: the members after it.
        loss: `[member]` float64, before the update; NaN for members that had diverged.
        is_stepped: `[member]`, whose parameters were to be updated.
        norms: those that are recorded, `[member]` float64; NaN for members that were not to be updated. Where there is
            no stacked update, that of the update is not among them.
        grads: where there is no stacked update, what each member's own optimizer is to step with; else empty.
    """

    ensemble: Ensemble
    loss: Tensor
    is_stepped: Tensor
    norms: dict[str, Tensor]
    grads: Grads


class Step:
    """The step of an ensemble.

    Args:
        objective: one member's loss.
        update: the optimizer's formula; None to return the gradients.
        max_grad_norm: the norm to which each member's gradient is clipped; None leaves it alone.
        recorded: the norms that are noted.

    Attributes:
        is_whole: whether the update is part of it.
    """

    def __init__(
        self,
        objective: Objective,
        update: StackedUpdate | None,
        *,
        max_grad_norm: float | None,
        recorded: Sequence[str] = (),
    ) -> None:
        self._objective = objective
        self._update = update
        self.is_whole = update is not None
        self._max_grad_norm = max_grad_norm
        self._recorded = recorded
        self._has_own_batches = False  # whether each member needs a copy of the batch

    def __call__(
        self,
        ensemble: Ensemble,
        batches: Sequence[Batch],  # more than one when accumulating
        draws: Sequence[Sequence[Draw]],  # what the model draws at random, for each batch
        drawn: Sequence[Sequence[Tensor]],  # and what was drawn
        seed_index: Tensor | None,  # [member], a member's place on the seed axis of batches and drawn; None without
        hyper: Mapping[str, Tensor],  # [member] float64
    ) -> StepResult:
        """Compute the members after one step; nothing given is changed."""
        loss, grads, buffers = self._gradients(ensemble, batches, draws, drawn, seed_index)
        with torch.no_grad():
            was_alive, scale = ensemble.fate.alive, ensemble.scale
            fate = ensemble.fate.after(loss)
            is_stepped = fate.alive
            if scale is not None:
                grads, is_finite = _unscale(grads, scale)
                is_stepped = is_stepped & is_finite
                scale = scale.after(is_finite)
            norms: dict[str, Tensor] = {}
            if "grad_norm" in self._recorded:
                norms["grad_norm"] = norm_of(grads, loss)
            if self._max_grad_norm is not None:
                grads = _clip(grads, self._max_grad_norm)
            parameters, optimizer = ensemble.parameters, ensemble.optimizer
            if self._update is not None:
                parameters, optimizer = self._update.apply(parameters, grads, optimizer, hyper, is_stepped)
                if scale is not None:  # a member that skips this step goes on later; one that diverged does not
                    optimizer = {
                        name: {k: _where(is_stepped, v, ensemble.optimizer[name][k]) for k, v in state.items()}
                        for name, state in optimizer.items()
                    }
                if "update_norm" in self._recorded:
                    norms["update_norm"] = norm_of({n: p - ensemble.parameters[n] for n, p in parameters.items()}, loss)
                grads = {}
            norms = {name: torch.where(is_stepped, norm, torch.nan) for name, norm in norms.items()}
            buffers = {
                name: _where(was_alive, b, ensemble.buffers[name]) if name in ensemble.member_buffers else b
                for name, b in buffers.items()
            }
            after = Ensemble(ensemble.seeds, parameters, buffers, ensemble.member_buffers, optimizer, fate, scale)
            return StepResult(after, torch.where(was_alive, loss, torch.nan), is_stepped, norms, grads)

    def _gradients(
        self,
        ensemble: Ensemble,
        batches: Sequence[Batch],
        draws: Sequence[Sequence[Draw]],
        drawn: Sequence[Sequence[Tensor]],
        seed_index: Tensor | None,
    ) -> tuple[Tensor, Grads, dict[str, Tensor]]:
        """Average losses `[member]` and gradients over the batches of the step; return also the new buffers."""
        parameters = {name: p.detach().requires_grad_() for name, p in ensemble.parameters.items()}
        buffers = ensemble.buffers
        shares: list[Tensor] = []  # of the batches, in the loss
        grads: Grads = dict.fromkeys(parameters)
        for batch, own_draws, own_drawn in zip(batches, draws, drawn, strict=True):
            given = (parameters, buffers, ensemble.member_buffers)
            try:
                losses, buffers = self._losses(*given, batch, own_draws, own_drawn, seed_index)
            except SharedInputsError:
                if self._has_own_batches or seed_index is not None:
                    raise
                self._has_own_batches = True
                losses, buffers = self._losses(*given, batch, own_draws, own_drawn, seed_index)
            shares.append(losses.detach().double() / len(batches))
            total = losses if len(batches) == 1 else losses / len(batches)
            if ensemble.scale is not None:
                total = total * ensemble.scale.value
            of_total = torch.ones_like(total)
            new = torch.autograd.grad(total, list(parameters.values()), grad_outputs=of_total, allow_unused=True)
            for name, grad in zip(parameters, new, strict=True):
                old = grads[name]
                grads[name] = grad if old is None else old if grad is None else old + grad
        return functools.reduce(torch.add, shares), grads, buffers

    def _losses(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        member_buffers: frozenset[str],
        batch: Batch,
        draws: Sequence[Draw],
        drawn: Sequence[Tensor],
        seed_index: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the losses `[member]` of one batch, and the buffers after it."""
        buffers = {name: b.clone() for name, b in buffers.items()}  # which models change in place,
        drawn = list(drawn)
        if self._has_own_batches and seed_index is None:
            (batch, drawn), seed_index = for_each((batch, drawn), parameters)
        if seed_index is None:
            batch = copy_batch(batch)  # as some losses do the batch
        else:
            batch, drawn = hand_out((batch, drawn), seed_index)
        shared = {name: b for name, b in buffers.items() if name not in member_buffers}
        own = {name: b for name, b in buffers.items() if name in member_buffers}

        def member(
            parameters: dict[str, Tensor], own: dict[str, Tensor], batch: Batch, drawn: Sequence[Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            for parameter in parameters.values():
                parameter._is_param = True  # what isinstance(parameter, nn.Parameter) asks
            tensors = parameters | shared | own
            rules = MemberRules(draws, drawn, owns_new=self._objective.owns_new)
            with checkpoints_run_through(), functions_for_each(), rules:
                loss = self._objective.evaluate(tensors, batch)
            rules.check_end()
            if rules.is_good is not None:
                self._objective.has_checks = True
                loss = torch.where(rules.is_good, loss, REFUSED)
            return loss, {name: tensors[name] for name in buffers}

        out_dims: Any = (0, {name: 0 if name in member_buffers else None for name in buffers})
        batch_dims, drawn_dims = (None, None) if seed_index is None else member_dims((batch, drawn))
        mapped = vmap(member, in_dims=(0, 0, batch_dims, drawn_dims), out_dims=out_dims)
        with self._objective.undisturbed(), compiled_run_through():  # nothing that vmap wraps may stay in a module
            return mapped(dict(parameters), own, batch, drawn)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Choose per member between two tensors `[member, *shape]`."""
    return torch.where(over_members(mask, new), new, old)


def _unscale(grads: Grads, scale: LossScale) -> tuple[Grads, Tensor]:
    """Take the loss scale out of the gradients, and say whose are finite: `[member]`."""
    grads = {name: g if g is None else g * per_member(scale.inverse, g) for name, g in grads.items()}
    if all(g is None for g in grads.values()):
        return grads, torch.ones_like(scale.value, dtype=torch.bool)
    is_finite = torch.stack([_flat(g).isfinite().all(1) for g in grads.values() if g is not None]).all(0)
    return grads, is_finite


def _clip(grads: Grads, max_norm: float) -> Grads:
    """Clip each member's gradient to a norm, as torch.nn.utils.clip_grad_norm_ does one model's."""
    if all(g is None for g in grads.values()):
        return grads
    coefficient = (max_norm / (_norm(grads) + 1e-6)).clamp(max=1.0)
    return {name: g if g is None else g * per_member(coefficient, g) for name, g in grads.items()}


def norm_of(tensors: Grads, like: Tensor) -> Tensor:
    """Compute each member's norm of all its tensors together, `[member]`, in the dtype of `like`; 0 of none."""
    return torch.zeros_like(like) if all(t is None for t in tensors.values()) else _norm(tensors).to(like.dtype)


def _norm(tensors: Grads) -> Tensor:
    """The same of some tensors, as torch.nn.utils.clip_grad_norm_ takes one model's: the norm of their norms."""
    norms = [torch.linalg.vector_norm(_flat(t), dim=1) for t in tensors.values() if t is not None]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _flat(tensor: Tensor) -> Tensor:
    """All numbers of each member side by side, `[member, number]`; a parameter may be a single one, without an axis."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
