"""Linear layers: one batched product, or one wide one where members share the input.

On a CPU the wide product is faster for narrow layers alone: it packs all weights anew. vmap's own rule transposes
weights, adds the bias in a pass of its own, and leaves weight gradients transposed, so that the update walks over them
against the grain.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._mapped import Mapped, member_first

_NARROW = 32  # outputs of a member; bench/README.md has what both ways take


def linear(
    input: Tensor,  # [*batch, in]
    weight: Tensor,  # [out, in]
    bias: Tensor | None = None,  # [out]
    *,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute F.linear for all members."""
    del drawn
    if input.dim() < 2 or weight.dim() != 2:
        return NotImplemented  # vectors are left to vmap
    if is_traceable_wrapper_subclass(weight):
        return NotImplemented  # quantized weights have a product of their own, above autograd
    if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
        # Here rather than inside, so that autograd casts the gradients back.
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = _Linear.apply(input, weight, bias)
    return output


class _Linear(Mapped):
    """F.linear with a rule for vmap. Autograd runs outside vmap, and differentiates what the rule calls."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Put the member axis where the product is one call."""
        input_dim, weight_dim, bias_dim = in_dims
        members = info.batch_size
        if weight_dim is None:  # frozen weights: more rows of an ordinary product
            output = F.linear(member_first(input, input_dim, members), weight)
            if bias is None:
                return output, 0
            bias = bias if bias_dim is None else bias.movedim(bias_dim, 0)
            return output + bias.reshape(-1, *[1] * (output.dim() - 2), bias.size(-1)), 0
        weight = weight.movedim(weight_dim, 0)
        if bias is not None:
            bias = member_first(bias, bias_dim, members)
        if input_dim is None and (input.device.type != "cpu" or weight.size(1) < _NARROW):
            wide = F.linear(input, weight.flatten(0, 1), None if bias is None else bias.flatten())
            return wide.unflatten(-1, (members, -1)), wide.dim() - 1
        input = member_first(input, input_dim, members)
        output = _BatchedLinear.apply(input.flatten(1, -2), weight, bias)
        return output.unflatten(1, input.shape[1:-1]), 0


class _BatchedLinear(torch.autograd.Function):
    """y[m] = x[m] w[m]^T + b[m], with gradients in the layout of what they are the gradients of."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # [member, row, in]
        weight: Tensor,  # [member, out, in]
        bias: Tensor | None,  # [member, out]
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return input.bmm(weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], input, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # [member, row, out]
        (grad,) = grads
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grad.bmm(weight) if needs_input else None,
            grad.transpose(1, 2).bmm(input) if needs_weight else None,
            grad.sum(1) if ctx.has_bias and needs_bias else None,
        )
