"""Cross-entropy: fold the member axis into the rows, for which torch has one fused kernel each way.

vmap's own rule gathers and scatters log-probabilities in a dozen passes.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._mapped import Mapped, member_first


def cross_entropy(
    input: Tensor,  # [batch, class, *position]
    target: Tensor,  # [batch, *position], class indices
    weight: Tensor | None = None,  # [class]
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute F.cross_entropy for all members; class probabilities and label smoothing are left to vmap."""
    del drawn
    is_plain = not target.is_floating_point() and label_smoothing == 0 and size_average is None and reduce is None
    if not is_plain or input.dim() < 2:
        return NotImplemented
    losses: Tensor = _CrossEntropy.apply(input, target, weight, ignore_index)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    is_counted = target != ignore_index
    if weight is None:
        return losses.sum() / is_counted.sum()
    return losses.sum() / torch.where(is_counted, weight[torch.where(is_counted, target, 0)], 0).sum()


class _CrossEntropy(Mapped):
    """Cross-entropy without reduction, with a rule for vmap."""

    @staticmethod
    def forward(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
        return F.cross_entropy(input, target, weight, ignore_index=ignore_index, reduction="none")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
    ) -> tuple[Tensor, int]:
        """Fold `[member, batch, class, *position]` into `[member * batch, class, *position]`."""
        members = info.batch_size
        input, target = (member_first(x, dim, members) for x, dim in zip((input, target), in_dims[:2], strict=True))
        if in_dims[2] is not None:
            raise RuntimeError("cross_entropy has no rule for class weights that differ between members")
        losses = _CrossEntropy.forward(input.flatten(0, 1), target.flatten(0, 1), weight, ignore_index)
        return losses.unflatten(0, (members, -1)), 0
