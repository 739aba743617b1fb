"""Normalisations: members side by side as channels, or in a loop where a member is large.

vmap takes weights and biases out of torch's fused kernels and applies them in passes of their own, each with a backward
pass, and moves the member axis of batch norm about in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._mapped import Mapped, is_mapped, member_first

_LOOPED_NUMEL = 32_768  # from here on a CPU has the numbers of one member in cache, and calls cost little beside them


def batch_norm(
    input: Tensor,  # [batch, channel, *position]
    weight: Tensor | None,  # [channel]
    bias: Tensor | None,  # [channel]
    running_mean: Tensor | None,  # [channel], updated in place in training
    running_var: Tensor | None,  # [channel], updated in place in training
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
    *,
    drawn: Any,
) -> Tensor:
    """Compute torch.batch_norm for all members."""
    del drawn
    options = (training, momentum, eps, cudnn_enabled)
    return _running_norm(torch.batch_norm, input, weight, bias, running_mean, running_var, options)


def instance_norm(
    input: Tensor,  # [batch, channel, *position]
    weight: Tensor | None,  # [channel]
    bias: Tensor | None,  # [channel]
    running_mean: Tensor | None,  # [channel], updated in place where the inputs' statistics are used
    running_var: Tensor | None,  # [channel], updated in place where the inputs' statistics are used
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
    *,
    drawn: Any,
) -> Tensor:
    """Compute torch.instance_norm for all members."""
    del drawn
    options = (use_input_stats, momentum, eps, cudnn_enabled)
    return _running_norm(torch.instance_norm, input, weight, bias, running_mean, running_var, options)


def _running_norm(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    options: tuple[Any, ...],
) -> Tensor:
    is_updated = options[0] and running_mean is not None
    if is_updated and is_mapped(input) and not (is_mapped(running_mean) and is_mapped(running_var)):
        return NotImplemented  # members cannot share what they change; vmap says so

    def for_channels(num_members: int, *tensors: Tensor | None) -> Tensor:
        del num_members
        return function(*tensors, *options)

    is_over_batch = function is torch.batch_norm and options[0]
    output: Tensor = _ChannelNorm.apply(for_channels, is_over_batch, input, weight, bias, running_mean, running_var)
    return output


def group_norm(
    input: Tensor,  # [batch, channel, *position]
    num_groups: int,
    weight: Tensor | None = None,  # [channel]
    bias: Tensor | None = None,  # [channel]
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
    *,
    drawn: Any,
) -> Tensor:
    """Compute torch.group_norm for all members."""
    del drawn

    def for_channels(num_members: int, input: Tensor, weight: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        return torch.group_norm(input, num_members * num_groups, weight, bias, eps, cudnn_enabled)

    output: Tensor = _ChannelNorm.apply(for_channels, False, input, weight, bias, None, None)
    return output


class _ChannelNorm(Mapped):
    """A norm with statistics and weights for each channel, or group of channels, of each member."""

    @staticmethod
    def forward(for_channels: Callable[..., Tensor], is_over_batch: bool, *tensors: Tensor | None) -> Tensor:
        del is_over_batch
        return for_channels(1, *tensors)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        for_channels: Callable[..., Tensor],
        is_over_batch: bool,
        input: Tensor,
        *of_channels: Tensor | None,  # weight, bias, running_mean, running_var
    ) -> tuple[Tensor, int]:
        """Make channels `[member * channel]` of `[member, channel]`, unless members share what belongs to them."""
        members, input_dim, dims = info.batch_size, in_dims[2], in_dims[3:]
        if dims == (None,) * 4 and not is_over_batch:
            rows = member_first(input, input_dim, members).flatten(0, 1)
            return for_channels(1, rows, *of_channels).unflatten(0, (members, -1)), 0
        stacked = [
            None if x is None else member_first(x, dim, members) for x, dim in zip(of_channels, dims, strict=True)
        ]
        if input_dim is None and dims[2:] == (None, None):
            # Members share the statistics, and differ in what is done with the normalised input.
            output = for_channels(1, input, None, None, *of_channels[2:])
            ones = [1] * (input.dim() - 2)
            weight, bias = (None if x is None else x.reshape(members, 1, -1, *ones) for x in stacked[:2])
            output = output.expand(members, *output.shape) if weight is None else output * weight
            return output if bias is None else output + bias, 0
        flat = [None if x is None else x.flatten() for x in stacked]
        output = for_channels(members, member_first(input, input_dim, members).transpose(0, 1).flatten(1, 2), *flat)
        for statistics, dim, updated in zip(stacked[2:], dims[2:], flat[2:], strict=True):
            if statistics is not None and updated is not None and dim is not None and not statistics.is_contiguous():
                statistics.copy_(updated.view(statistics.shape))  # because a copy was updated
        return output.unflatten(1, (members, -1)), 1


def layer_norm(
    input: Tensor,  # [*batch, *normalized_shape]
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,  # [*normalized_shape]
    bias: Tensor | None = None,  # [*normalized_shape]
    eps: float = 1e-5,
    cudnn_enable: bool = True,
    *,
    drawn: Any,
) -> Tensor:
    """Compute torch.layer_norm in a loop over members, if they are large and have weights of their own."""
    del drawn
    is_large = input.device.type == "cpu" and input.numel() >= _LOOPED_NUMEL
    if not is_large or not is_mapped(input) or not (is_mapped(weight) or is_mapped(bias)):
        return NotImplemented
    output: Tensor = _LayerNorm.apply(input, normalized_shape, weight, bias, eps, cudnn_enable)
    return output


class _LayerNorm(Mapped):
    """Layer norm with a rule for vmap."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.layer_norm(*args)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None,
        bias: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, int]:
        """Call torch for one member after another."""
        members = info.batch_size
        inputs = member_first(input, in_dims[0], members).unbind(0)
        weights, biases = (
            [None] * members if x is None else member_first(x, dim, members).unbind(0)
            for x, dim in ((weight, in_dims[2]), (bias, in_dims[3]))
        )
        each = zip(inputs, weights, biases, strict=True)
        return torch.stack([torch.layer_norm(x, normalized_shape, w, b, *options) for x, w, b in each]), 0


def check_gradients(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], level: int) -> None:
    """Raise RuntimeError where the code takes a gradient of a norm's weight by a transform of its own.

    In vmap's rules for the backward passes of these norms the gradient of the weight takes the statistics for constants
    (torch 2.13), so that the gradient of that gradient would be another than without vmap.

    Args:
        func: that is called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        level: of the transform that maps members.
    """
    if (place := _WEIGHT_PLACES.get(func)) is None:
        return
    weight = args[place] if len(args) > place else kwargs.get("weight")
    if weight is None or not torch._C._functorch.is_gradtrackingtensor(weight):
        return
    own = (torch._C._functorch.get_interpreter_stack() or [])[level:]
    if not any(transform.key() == torch._C._functorch.TransformType.Vmap for transform in own):
        raise RuntimeError(f"`torch.func` takes a gradient of the weight of `{func.__name__}`")


_WEIGHT_PLACES: dict[Callable[..., Any], int] = {torch.batch_norm: 1, torch.instance_norm: 1, torch.layer_norm: 2}


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
    if dim == 0 and v.dim() > 1 and is_mapped(v) and is_mapped(g):
        return _WeightNorm.apply(v, g)
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / v.norm(2, axes, keepdim=True))


class _WeightNorm(Mapped):
    """torch._weight_norm over all axes but the first, with a rule for vmap."""

    @staticmethod
    def forward(v: Tensor, g: Tensor) -> Tensor:
        return torch._weight_norm(v, g, 0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], v: Tensor, g: Tensor) -> tuple[Tensor, int]:
        """Put the members side by side along the first axis, each row of which has a norm of its own."""
        v, g = (member_first(x, dim, info.batch_size).contiguous() for x, dim in zip((v, g), in_dims, strict=True))
        return torch._weight_norm(v.flatten(0, 1), g.flatten(0, 1), 0).unflatten(0, v.shape[:2]), 0
