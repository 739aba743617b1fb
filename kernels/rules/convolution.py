"""Convolutions: one wide convolution where members share the input, a loop over members where they do not.

vmap makes a grouped convolution of N members, which on a CPU is slower than N convolutions one after another. On other
devices the choice is left to vmap.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._mapped import Mapped, member_first


def _rule(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a rule for torch.conv1d, conv2d or conv3d."""

    def convolution(
        input: Tensor,  # [batch, channel, *position]
        weight: Tensor,  # [out, channel / groups, *kernel]
        bias: Tensor | None = None,  # [out]
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        drawn: Iterator[Tensor],
    ) -> Tensor:
        """Compute a convolution for all members."""
        del drawn
        if input.device.type != "cpu" or input.dim() != weight.dim():
            return NotImplemented  # without a batch axis it is left to vmap
        output: Tensor = _Convolution.apply(function, input, weight, bias, stride, padding, dilation, groups)
        return output

    return convolution


class _Convolution(Mapped):
    """A convolution with a rule for vmap. Autograd runs outside vmap, and differentiates what the rule calls."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *args: Any) -> Tensor:
        return function(*args)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> tuple[Tensor, int]:
        """Put the member axis into the channels, into the batch, or loop over it."""
        _, input_dim, weight_dim, bias_dim, *_ = in_dims
        members = info.batch_size
        options = (stride, padding, dilation, groups)
        if weight_dim is None and bias_dim is None:  # frozen weights: more rows of an ordinary convolution
            assert input_dim is not None  # something is mapped, or vmap would not have come here
            output = function(input.movedim(input_dim, 0).flatten(0, 1), weight, bias, *options)
            return output.unflatten(0, (members, -1)), 0
        weight = member_first(weight, weight_dim, members)
        if bias is not None:
            bias = member_first(bias, bias_dim, members)
        if input_dim is None and groups == 1:
            wide = function(input, weight.flatten(0, 1), None if bias is None else bias.flatten(), *options)
            return wide.unflatten(1, (members, -1)), 1
        inputs = [input] * members if input_dim is None else input.unbind(input_dim)
        biases = [None] * members if bias is None else bias.unbind(0)
        each = zip(inputs, weight.unbind(0), biases, strict=True)
        return torch.stack([function(x, w, b, *options) for x, w, b in each]), 0


conv1d = _rule(torch.conv1d)
conv2d = _rule(torch.conv2d)
conv3d = _rule(torch.conv3d)
