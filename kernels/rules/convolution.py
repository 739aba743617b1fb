"""Convolutions on a CPU: a loop over members, images with their channels last.

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
        """Loop over the members, or put them into the batch or the channels where that is one convolution."""
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
        is_2d = weight.dim() == 5
        if input_dim is None and groups == 1 and not is_2d:
            wide = function(input, weight.flatten(0, 1), None if bias is None else bias.flatten(), *options)
            return wide.unflatten(1, (members, -1)), 1
        input = input.unsqueeze(0) if input_dim is None else input.movedim(input_dim, 0)
        # Channels last is how convolutions and pools of images are fastest; single members are stacked as they lie.
        split = _unstack_images if is_2d else _unstack
        inputs = split(input)
        biases = [None] * members if bias is None else _unstack(bias)
        each = zip(inputs * (members // len(inputs)), split(weight), biases, strict=True)
        outputs = [function(x, w, b, *options) for x, w, b in each]
        if not is_2d:
            return _stack(outputs), 0
        return _stack([y.movedim(-3, -1) for y in outputs]).movedim(-1, -3), 0


def _stack(members: list[Tensor]) -> Tensor:
    """Put a member axis first; a single member is not copied."""
    return torch.stack(members) if len(members) > 1 else members[0].unsqueeze(0)


def _unstack(x: Tensor) -> list[Tensor]:
    """Take the member axis apart; a single member's gradient is not copied."""
    return list(x.unbind(0)) if len(x) > 1 else [x.squeeze(0)]


def _unstack_images(x: Tensor) -> list[Tensor]:
    """Take `[member, batch, channel, height, width]` apart, laid out with the channels last."""
    last = x.movedim(-3, -1)
    # A single channel is last whatever its stride says, but convolutions go by the stride.
    last = last.contiguous() if last.size(-1) > 1 else last.clone(memory_format=torch.contiguous_format)
    return [own.movedim(-1, -3) for own in _unstack(last)]


conv1d = _rule(torch.conv1d)
conv2d = _rule(torch.conv2d)
conv3d = _rule(torch.conv3d)
