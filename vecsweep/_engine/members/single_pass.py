"""A single ordinary pass over a batch, and what a model is seen to do by passes over other data.

Not here: what is made of it (`probe.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecsweep._engine.caller.lending import Lent
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.batches import copy_batch
from vecsweep._engine.data.layouts import has_strides
from vecsweep._engine.data.packing import tree_map
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.sameness import is_same
from vecsweep._types import Batch
from vecsweep.kernels.rules import OpenDraws, checkpoints_run_through


class Pass(NamedTuple):
    """What an ordinary pass does.

    Attributes:
        loss: that it computes.
        changed: what is not trained and has other numbers after it, by name.
        replaced: the names of trained parameters that are no more in their place.
        batch: as it leaves its copy.
    """

    loss: Tensor
    changed: dict[str, Tensor]
    replaced: list[str]
    batch: Batch


def single_pass(
    learner: Learner,
    parameters: dict[str, Tensor],
    batch: Batch,
    watching: Sequence[AbstractContextManager[object]] = (),
    before: Mapping[str, Tensor] = MappingProxyType({}),
) -> Pass:
    """Evaluate the loss on copies of the batch and of what is not trained, where that is so `before`."""
    lent = Lent({name: p for name, p in learner.objective.lent.items() if name not in before})
    shared = learner.objective.lent.keys() - before.keys()
    before = learner.constants | dict(before)
    tensors = parameters | {name: t.clone() for name, t in before.items() if name not in shared}
    batch = copy_batch(batch)
    with ExitStack() as stack:
        for context in (*(watching or [OpenDraws()]), lent):  # draws are open in a pass that is recorded, too
            stack.enter_context(context)
        loss = learner.objective.evaluate(tensors, batch)
    tensors |= lent.changed
    return Pass(
        loss,
        {n: tensors[n] for n in before if n in tensors and not is_same(tensors[n], before[n])},
        [name for name, p in parameters.items() if tensors[name] is not p],
        batch,
    )


def is_read_on_other_data(
    learner: Learner, parameters: dict[str, Tensor], batch: Batch, watch: Watch, rewind: Callable[[], None]
) -> bool:
    """Whether what a pass over a batch has left, the last, is read by one over other data: its means, say."""
    losses = list[Tensor]()
    for _ in ("behind it", "alone"):
        rewind()
        try:
            with checkpoints_run_through():
                losses.append(single_pass(learner, parameters, _altered(batch)).loss)
        except Exception:  # of numbers that the model refuses
            return False
        watch.restore()
    return not is_same(*losses)


def _altered(batch: Batch) -> Batch:
    """A batch of other numbers: the first half of each tensor, every row twice, and what is no whole number smaller."""

    def altered(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not has_strides(leaf):
            return leaf
        halved = leaf[torch.arange(len(leaf), device=leaf.device) // 2] if leaf.dim() else leaf.clone()
        return 0.9 * halved if leaf.is_floating_point() else halved

    return tree_map(altered, batch)


def registered_in(original: Learner, learner: Learner) -> dict[str, Tensor]:
    """Copies of the parameters and buffers that passes of a copy were the first to register, by name."""
    before, now = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (original.model, learner.model))
    return {name: now[name].detach().clone() for name in now.keys() - before.keys()}


def why_registered(
    original: Learner, registered: Mapping[str, Tensor], others: dict[str, Tensor], batch: Batch
) -> str | None:
    """Why members cannot be batched that register something; None where it is the same of other weights and data."""
    copied = original.copy()
    try:
        single_pass(copied, others, _altered(batch))
        found = registered_in(original, copied)
    except Exception:  # of numbers that the model refuses
        found = {}
    for name, value in sorted(registered.items()):
        path, _, key = name.rpartition(".")
        holder = dict(original.model.named_modules()).get(path)
        if holder is None or key in vars(holder) or name not in found or not is_same(value, found[name]):
            return f"the forward pass registers {name!r} when it is first called; run a batch through the model before"
    return None
