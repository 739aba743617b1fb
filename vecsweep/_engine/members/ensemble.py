"""Ensemble: the stacked state of members that are stepped together, and the way in and out of it.

A `MemberState` is one member's own state, in stock PyTorch's terms, so that a member can pass from one engine to the
other, be handed to the caller, or be trained further.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch.func has no public way to map over nested containers

from vecsweep._engine.caller.rng import State
from vecsweep._engine.caller.watch import Changes
from vecsweep._engine.members.divergence import Fate
from vecsweep._types import Precision

_ALIGNED_BYTES = 16  # compiled code takes for granted that tensors begin so


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """What one member's optimizer remembers, as the `state_dict` of a torch.optim optimizer has it.

    Numbers are as precise as they were where the member was trained; an optimizer that loads them makes of them what
    its class needs.

    Attributes:
        of_parameters: the state of each parameter, by its name.
        rest: what else is in the `state_dict`; nothing if the member comes from an ensemble.
    """

    of_parameters: dict[str, dict[str, Any]]
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LossScale:
    """The loss scale of each member for fp16, `[member]`, as torch.amp.GradScaler keeps it for one model.

    Attributes:
        value: what the loss is multiplied by.
        streak: steps since the scale last changed.
    """

    value: Tensor
    streak: Tensor

    @property
    def inverse(self) -> Tensor:
        """What gradients are multiplied by, as GradScaler computes it."""
        return self.value.double().reciprocal().float()

    @classmethod
    def start(cls, num_members: int, device: torch.device) -> "LossScale":
        """GradScaler's initial scale."""
        return cls(
            torch.full((num_members,), 2.0**16, device=device),
            torch.zeros(num_members, dtype=torch.int64, device=device),
        )

    def after(self, is_finite: Tensor) -> "LossScale":
        """Halve the scale where gradients overflowed; double it after 2,000 steps without."""
        streak = torch.where(is_finite, self.streak + 1, 0)
        grown = torch.where(streak == 2000, 2 * self.value, self.value)
        return LossScale(torch.where(is_finite, grown, self.value / 2), torch.where(streak == 2000, 0, streak))

    def select(self, index: Tensor | slice) -> "LossScale":
        """Take some members out."""
        return LossScale(self.value[index], self.streak[index])


@dataclass(frozen=True, slots=True)
class MemberState:
    """One member's own state.

    Attributes:
        parameters: what is trained, by name.
        buffers: what a pass changes, by name: buffers, and parameters that are not trained.
        optimizer: what its optimizer remembers; None before the first step.
        fate: the member's, as an ensemble of one.
        scale: the member's loss scale, as an ensemble of one; None without fp16.
        kept: what its passes have kept in Python, in the model and outside it.
        stream: where its random numbers stand; None where those of its seed do, which members have in common unless how
            many are drawn depends on the weights.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: OptimizerState | None
    fate: Fate
    scale: LossScale | None
    kept: Changes = field(default_factory=dict)
    stream: State | None = None

    @classmethod
    def start(
        cls, parameters: dict[str, Tensor], buffers: dict[str, Tensor], precision: Precision | None
    ) -> "MemberState":
        """A member before its first step, whom no ceiling ends; its tensors are the caller's until it is loaded."""
        device = next(iter(parameters.values())).device
        scale = LossScale.start(1, device) if precision == "fp16" else None
        return cls(parameters, buffers, None, Fate.start(device), scale)

    def copy(self) -> "MemberState":
        """The same with tensors of its own."""
        remembered = pytree.tree_leaves(self.optimizer.of_parameters) if self.optimizer else []
        # What deepcopy makes of a view, such as a member's part of what is stacked, is a copy of the whole.
        memo = {id(value): value.clone() for value in remembered if isinstance(value, Tensor)}
        return replace(
            self,
            parameters={name: p.clone() for name, p in self.parameters.items()},
            buffers={name: buffer.clone() for name, buffer in self.buffers.items()},
            optimizer=copy.deepcopy(self.optimizer, memo),
            fate=self.fate.copy(),
            scale=None if self.scale is None else LossScale(self.scale.value.clone(), self.scale.streak.clone()),
        )

    def on(self, device: torch.device | str) -> "MemberState":
        """The same on a device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "MemberState":
        """The same with what a function makes of each tensor."""

        def moved(value: Any) -> Any:
            return pytree.tree_map_only(Tensor, function, value)

        own = self.optimizer
        return MemberState(
            moved(self.parameters),
            moved(self.buffers),
            None if own is None else OptimizerState(moved(own.of_parameters), moved(own.rest)),
            Fate(*map(moved, (self.fate.ceiling, self.fate.streak, self.fate.alive))),
            None if self.scale is None else LossScale(moved(self.scale.value), moved(self.scale.streak)),
            moved(self.kept),
            self.stream,
        )


@dataclass(slots=True)
class Ensemble:
    """Members that are stepped together; every tensor has the member axis first, but for shared buffers.

    Attributes:
        seeds: `[member]`.
        parameters: what is trained, by name.
        buffers: what the model changes as it runs, by name.
        member_buffers: the names of the buffers that have the member axis; the others are common to all members.
        optimizer: the state of each parameter's update, by its name.
        fate: how the members have fared.
        scale: their loss scales; None without fp16.
    """

    seeds: list[int]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    member_buffers: frozenset[str]
    optimizer: dict[str, dict[str, Tensor]]
    fate: Fate
    scale: LossScale | None = field(default=None)

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def stack(cls, members: Sequence[MemberState], seeds: Sequence[int], member_buffers: frozenset[str]) -> "Ensemble":
        """Stack members, but for what their optimizers remember; the other buffers are taken from the first."""
        first = members[0]
        return cls(
            seeds=list(seeds),
            parameters={name: torch.stack([m.parameters[name] for m in members]) for name in first.parameters},
            buffers={
                name: torch.stack([m.buffers[name] for m in members]) if name in member_buffers else buffer.clone()
                for name, buffer in first.buffers.items()
            },
            member_buffers=member_buffers,
            optimizer={},
            fate=Fate(*(torch.cat([getattr(m.fate, f) for m in members]) for f in ("ceiling", "streak", "alive"))),
            scale=None
            if first.scale is None
            else LossScale(
                *(torch.cat([getattr(m.scale, f) for m in members if m.scale]) for f in ("value", "streak"))
            ),
        )

    @property
    def tensors(self) -> Any:
        """All tensors, as a nested container for torch's pytrees."""
        scale = (self.scale.value, self.scale.streak) if self.scale else ()  # torch's pytrees take None for a leaf
        fate = (self.fate.ceiling, self.fate.streak, self.fate.alive)
        return self.parameters, self.buffers, self.optimizer, fate, scale

    def with_tensors(self, tensors: Any) -> "Ensemble":
        """The same members with other tensors, nested as `tensors` gives them."""
        parameters, buffers, optimizer, fate, scale = tensors
        return Ensemble(
            self.seeds,
            parameters,
            buffers,
            self.member_buffers,
            optimizer,
            Fate(*fate),
            LossScale(*scale) if scale else None,
        )

    def select(self, keep: Sequence[int]) -> "Ensemble":
        """Take some members out, by their positions, into an ensemble of their own; a range of them is not copied."""
        index = torch.tensor(keep, dtype=torch.int64, device=self.fate.alive.device)
        where = slice(keep.start, keep.stop) if isinstance(keep, range) else index

        def part(tensor: Tensor) -> Tensor:
            own = tensor[where]
            return own if own.data_ptr() % _ALIGNED_BYTES == 0 else own.clone()

        return replace(
            self,
            seeds=[self.seeds[i] for i in keep],
            parameters={name: part(p) for name, p in self.parameters.items()},
            buffers={name: part(b) if name in self.member_buffers else b.clone() for name, b in self.buffers.items()},
            optimizer={n: {k: part(v) for k, v in state.items()} for n, state in self.optimizer.items()},
            fate=self.fate.select(index),
            scale=self.scale.select(index) if self.scale else None,
        )

    def member(self, i: int) -> MemberState:
        """One member's state; its tensors are views of the ensemble's."""
        alone, own = slice(i, i + 1), self.member_buffers
        return MemberState(
            parameters={name: p[i] for name, p in self.parameters.items()},
            buffers={name: b[i] if name in own else b for name, b in self.buffers.items()},
            optimizer=OptimizerState({n: {k: v[i] for k, v in state.items()} for n, state in self.optimizer.items()}),
            fate=self.fate.select(alone),
            scale=self.scale.select(alone) if self.scale else None,
        )
