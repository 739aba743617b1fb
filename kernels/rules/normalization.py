"""Normalisations that vmap runs member by member."""

from typing import Any

from torch import Tensor


def weight_norm(
    v: Tensor,  # [*shape], the direction
    g: Tensor,  # broadcasts to [*shape], the norm
    dim: int = 0,
    *,
    drawn: Any,
) -> Tensor:
    """Compute w = g * v / |v|, the norm being over all axes but `dim`; over all axes if `dim` is -1.

    Reference:
        Salimans and Kingma, Weight normalization, 2016, https://arxiv.org/abs/1602.07868
    """
    del drawn
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / v.norm(2, axes, keepdim=True))
